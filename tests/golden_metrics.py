"""What torch-fidelity makes of the same features, images and stand-in Inception: tests/data/metrics.safetensors.

    pip install --no-deps --target /tmp/fidelity torch-fidelity==0.4.0
    python -m tests.golden_metrics /tmp/fidelity

Kept apart, as its wheel brings a package called `tests`, which hides ours. Inputs are drawn from seeds and not stored.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file
from torch import Tensor

from trainables import torchvision_guard  # noqa: F401  torch-fidelity imports torchvision
from trainables.evaluation.inception import Inception

FILE = Path(__file__).parent / "data" / "metrics.safetensors"
PAIRS = [(0, 300, 200), (1, 217, 333)]  # seed, fakes, reals
LOGITS = [(200, 10), (217, 10), (33, 4)]  # samples, splits
SIZES = [(32, 32), (256, 256), (299, 299), (400, 310)]


def features(count: int, dim: int, seed: int = 0, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    """(count, dim) float64 with a falling spectrum."""
    chance = torch.Generator().manual_seed(seed)
    spectrum = torch.linspace(1, 0.05, dim, dtype=torch.float64)
    return scale * torch.randn(count, dim, generator=chance, dtype=torch.float64) * spectrum + shift


def for_kid(seed: int, count: int, others: int) -> tuple[Tensor, Tensor]:
    """Fakes and reals."""
    return features(count, 48, seed, 1.2, 0.1), features(others, 48, seed + 7)


def for_recall(seed: int, count: int, others: int) -> tuple[Tensor, Tensor]:
    """Fakes and reals, a part of each among the others."""
    return features(count, 6, seed, 0.8, 0.4), features(others, 6, seed + 7)


def for_score(count: int) -> Tensor:
    """Logits."""
    return 3 * features(count, 40)


def pictures(height: int, width: int) -> Tensor:
    """(2, 3, height, width) uint8: coarse patches, as much of noise looks the same to a network."""
    chance = torch.Generator().manual_seed(height)
    coarse = torch.randint(0, 256, (2, 3, 5, 4), generator=chance)
    rows, columns = torch.arange(height) * 5 // height, torch.arange(width) * 4 // width
    return coarse[:, :, rows][..., columns].to(torch.uint8)


def standin() -> Inception:
    """An Inception of random weights: what is computed does not depend on what was learned."""
    network = Inception().eval()
    chance = torch.Generator().manual_seed(0)
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if tensor.is_floating_point():
            wide = 2.5 / tensor[0].numel() ** 0.5 if tensor.ndim > 1 else 0.1
            centre = 1.0 if "running_var" in name or "bn.weight" in name else 0.0
            tensor.data.uniform_(centre - wide, centre + wide, generator=chance)
    return network


def _doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def main(folder: str) -> None:
    sys.path.append(folder)
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import calculate_precision_recall_full

    values: dict[str, Tensor] = {}
    for seed, count, others in PAIRS:
        name, kid = f"{seed}", {"kid_subsets": 20, "kid_subset_size": 100, "rng_seed": 2020, "verbose": False}
        fake, real = for_kid(seed, count, others)
        metrics = kid_features_to_metric(fake, real, **kid)
        values[f"kid {name}"] = _doubles(
            metrics["kernel_inception_distance_mean"], metrics["kernel_inception_distance_std"]
        )
        metrics = fid_statistics_to_metric(*map(fid_features_to_statistics, (fake, real)), verbose=False)
        values[f"fid {name}"] = _doubles(metrics["frechet_inception_distance"])
        values[f"recall {name}"] = _doubles(*calculate_precision_recall_full(*for_recall(seed, count, others)))
    for count, splits in LOGITS:
        metrics = isc_features_to_metric(for_score(count), splits=splits, shuffle=False)
        values[f"is {count}"] = _doubles(metrics["inception_score_mean"], metrics["inception_score_std"])
    with TemporaryDirectory() as scratch:
        weights = Path(scratch) / "standin.pth"
        torch.save(standin().state_dict(), weights)
        extractor = FeatureExtractorInceptionV3(
            "standin", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(weights)
        )
        with torch.no_grad():
            for height, width in SIZES:
                pool, logits = extractor(pictures(height, width))
                values[f"pool {height}"], values[f"logits {height}"] = pool.contiguous(), logits.contiguous()
    save_file(values, FILE, {"made by": "torch-fidelity 0.4.0"})


if __name__ == "__main__":
    main(sys.argv[1])
