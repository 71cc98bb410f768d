"""Metrics against torch-fidelity and clean-fid on the same features and the same stand-in Inception, and their errors
against what many samples show."""

import math

import golden_metrics
import numpy as np
import pytest
import torch
from golden_metrics import features
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import load_file

from trainables import torchvision_guard  # noqa: F401  torch-fidelity and clean-fid import torchvision
from trainables.config import ProbeSpec
from trainables.evaluation import frechet_distance, inception_score, precision_recall
from trainables.evaluation.detectors import DetectorOutput
from trainables.evaluation.estimate import Estimate
from trainables.evaluation.frechet import Target
from trainables.evaluation.inception import CLASSES, FEATURES, SPATIAL, prepare
from trainables.evaluation.kernel import kernel_distance, kernel_estimate
from trainables.evaluation.manifold import precision_recall_estimates
from trainables.evaluation.reference import Reference
from trainables.evaluation.score import inception_score_estimate
from trainables.evaluation.statistics import FeatureStatistics

clean_fid = pytest.importorskip("cleanfid.fid")


# --- the same numbers as torch-fidelity's and clean-fid's


THEIRS = load_file(golden_metrics.FILE)  # torch-fidelity's


@pytest.mark.parametrize("seed, count, others", golden_metrics.PAIRS)
def test_fid_and_kid_equal_torch_fidelity_s_and_clean_fid_s(seed, count, others):
    fake, real = golden_metrics.for_kid(seed, count, others)
    one, other = (FeatureStatistics.of(part) for part in (fake, real))
    fid = frechet_distance(one.mean, one.covariance, other.mean, other.covariance)
    assert fid == pytest.approx(THEIRS[f"fid {seed}"].item(), rel=1e-6)
    assert kernel_distance(fake, real, subsets=20, subset_size=100) == pytest.approx(
        THEIRS[f"kid {seed}"].tolist(), rel=1e-6
    )
    np.random.seed(5)
    cleanly = clean_fid.kernel_distance(real.numpy(), fake.numpy(), num_subsets=20, max_subset_size=100)
    assert kernel_distance(fake, real, subsets=20, subset_size=100, seed=5)[0] == pytest.approx(cleanly, rel=1e-6)


@pytest.mark.parametrize("seed, count, others", golden_metrics.PAIRS)
def test_precision_and_recall_equal_torch_fidelity_s(seed, count, others):
    fake, real = golden_metrics.for_recall(seed, count, others)
    precision, recall = THEIRS[f"recall {seed}"].tolist()
    assert 0 < recall < 1 and 0 < precision < 1
    assert precision_recall(real, fake) == pytest.approx((precision, recall), rel=1e-6)


def test_numpy_arrays_give_the_numbers_of_tensors():
    chance = np.random.default_rng(0)
    real, fake = chance.normal(size=(2, 40, 6)).astype(np.float32)
    probs = chance.dirichlet(np.ones(5), size=40)
    moments = [array for part in (real, fake) for array in (part.mean(axis=0), np.cov(part.T))]
    assert frechet_distance(*moments) == frechet_distance(*map(torch.from_numpy, moments))
    assert precision_recall(real, fake) == precision_recall(torch.from_numpy(real), torch.from_numpy(fake))
    assert inception_score(probs) == inception_score(torch.from_numpy(probs))


@pytest.mark.parametrize("count, splits", golden_metrics.LOGITS)
def test_inception_score_equals_torch_fidelity_s(count, splits):
    ours = inception_score(golden_metrics.for_score(count).softmax(dim=1), splits)
    assert ours == pytest.approx(THEIRS[f"is {count}"].tolist(), rel=1e-6)


# --- the Inception


@pytest.fixture(scope="module")
def standin(tmp_path_factory):
    """The stand-in, and its file."""
    network = golden_metrics.standin()
    file = tmp_path_factory.mktemp("weights") / "standin.pth"
    torch.save(network.state_dict(), file)
    return network, file


@pytest.mark.parametrize("height, width", golden_metrics.SIZES)
@torch.no_grad()
def test_the_network_is_torch_fidelity_s(standin, height, width):
    network, _ = standin
    seen = network(prepare(golden_metrics.pictures(height, width), "tensorflow"))
    for ours, expected in ((seen.pool, THEIRS[f"pool {height}"]), (seen.logits, THEIRS[f"logits {height}"])):
        assert ours.std(dim=0).max() > 0.01 and (ours - expected).norm() <= 1e-6 * expected.norm()
    assert [tuple(part.shape) for part in seen] == [(2, FEATURES), (2, SPATIAL), (2, CLASSES)]


@torch.no_grad()
def test_sfid_looks_at_the_first_channels_of_mixed_6_conv_pixel_by_pixel(standin):
    network, _ = standin
    captured = {}
    hook = network.Mixed_6d.branch1x1.register_forward_hook(lambda *call: captured.update(conv=call[2]))
    spatial = network(prepare(torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8), "tensorflow")).spatial
    hook.remove()
    assert captured["conv"].shape == (2, 192, 17, 17)
    for row, column, channel in ((0, 0, 0), (3, 11, 6), (16, 16, 2)):
        place = (row * 17 + column) * 7 + channel
        assert torch.equal(spatial[:, place], captured["conv"][:, channel, row, column])


@torch.no_grad()
def test_images_are_resized_as_clean_fid_and_pytorch_fid_do():
    from cleanfid.resize import build_resizer

    images = torch.randint(0, 256, (2, 3, 64, 48), dtype=torch.uint8)
    cleanly = build_resizer("clean")(images[1].permute(1, 2, 0).numpy())
    torch.testing.assert_close(prepare(images, "clean")[1], (torch.from_numpy(cleanly).permute(2, 0, 1) - 128) / 128)
    legacy = build_resizer("legacy_pytorch")(images[1].permute(1, 2, 0).numpy())
    expected = 2 * torch.from_numpy(legacy).permute(2, 0, 1) / 255 - 1
    torch.testing.assert_close(prepare(images, "pytorch")[1], expected, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="tensorflow, clean, pytorch"):
        prepare(images, "lanczos")


# --- statistics from several ranks


@settings(max_examples=20)
@given(ranks=st.sampled_from([1, 2, 3, 7]), order=st.randoms(use_true_random=False), shift=st.sampled_from([0.0, 1e4]))
def test_statistics_merge_in_any_order(ranks, order, shift):
    everything = features(500, 12) + shift
    shards = list(everything.tensor_split(sorted(order.sample(range(1, 500), ranks - 1))))
    order.shuffle(shards)
    merged = FeatureStatistics(12)
    for shard in shards:
        part = FeatureStatistics(12)
        for batch in shard.split(64):
            part.update(batch)
        merged = merged.merge(part)
    assert merged.count == 500
    torch.testing.assert_close(merged.mean, everything.mean(dim=0), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(merged.covariance, torch.cov(everything.T), rtol=1e-10, atol=1e-10)


# --- errors


def gaussian(dim: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor, Target, float]:
    """The mean and the root of a Gaussian's covariance, another Gaussian, and how far they are apart."""
    chance = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(dim, dim, generator=chance, dtype=torch.float64))[0]
    spectrum = 1 / torch.arange(1, dim + 1, dtype=torch.float64)
    own = 0.5 * turn @ torch.diag((1.3 * spectrum).sqrt()) @ turn.T + 0.5 * torch.diag(spectrum.sqrt())
    mean = torch.full((dim,), 0.3 / math.sqrt(dim), dtype=torch.float64)
    nowhere = torch.zeros(dim, dtype=torch.float64)
    return (
        mean,
        own,
        Target(nowhere, torch.diag(spectrum)),
        frechet_distance(nowhere, torch.diag(spectrum), mean, own @ own.T),
    )


@pytest.mark.parametrize("dim, count", [(8, 300), (48, 400)])
def test_intervals_of_the_frechet_distance_cover_the_truth(dim, count):
    mean, own, target, truth = gaussian(dim)
    chance = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(200):
        sample = torch.randn(count, dim, generator=chance, dtype=torch.float64) @ own + mean
        low, high = target.limit(sample).interval()
        covered += low <= truth <= high
    assert 180 <= covered <= 198


def test_errors_are_those_that_many_samples_show():
    mean, own, target, _ = gaussian(32)
    reference = torch.randn(300, 32, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    chance = torch.Generator().manual_seed(0)
    by_metric: dict[str, list[Estimate]] = {"fid": [], "kid": [], "is": [], "precision": []}
    for _ in range(150):
        sample = torch.randn(300, 32, generator=chance, dtype=torch.float64) @ own + mean
        by_metric["fid"].append(target.estimate(sample))
        by_metric["kid"].append(kernel_estimate(sample, reference))
        by_metric["is"].append(inception_score_estimate((2 * sample).softmax(dim=1), splits=1))
        by_metric["precision"].append(precision_recall_estimates(reference, sample)[0])
    for name, estimates in by_metric.items():
        scatter = np.std([estimate.value for estimate in estimates])
        assert np.mean([estimate.se for estimate in estimates]) == pytest.approx(scatter, rel=0.2), name


def test_the_influence_is_what_a_sample_s_weight_does():
    """Against the definition: one sample's share of the weight grows a little, and all others' falls."""
    _, own, target, _ = gaussian(6)
    sample = features(40, 6) @ own
    estimate, tilt = target.estimate(sample), 1e-5
    for number in (0, 17):
        weights = torch.full((40,), (1 - tilt) / 40, dtype=torch.float64)
        weights[number] += tilt
        mean = weights @ sample
        centred = sample - mean
        moved = frechet_distance(target.mean, target.covariance, mean, (centred.T * weights) @ centred * 40 / 39)
        assert (moved - estimate.value) / tilt == pytest.approx(float(estimate.influence[number]), rel=0.05, abs=0.01)


@pytest.mark.parametrize("rows, columns", [(60, 20), (20, 60)])
def test_estimates_are_the_metrics(rows, columns):
    sample, reference = features(rows, columns, 1, 1.2, 0.1), features(90, columns, 2)
    target = Target(reference.mean(dim=0), torch.cov(reference.T))
    assert target.estimate(sample).value == pytest.approx(target.distance(FeatureStatistics.of(sample)), rel=1e-7)
    estimate = target.estimate(sample)
    assert float(estimate.influence.mean()) == pytest.approx(0, abs=1e-9)
    drawn = estimate.bootstrap(4000)
    assert float(drawn.mean()) == pytest.approx(estimate.value, abs=4 * estimate.se / 60)
    assert float(drawn.std()) == pytest.approx(estimate.se, rel=0.1)
    probs = (3 * sample).softmax(dim=1)
    assert inception_score_estimate(probs).value == pytest.approx(inception_score(probs)[0])
    low, high = estimate.interval(0.9)
    assert (high - low) / 2 == pytest.approx(1.645 * estimate.se, rel=1e-3)


def test_pairs_have_a_smaller_error_than_their_two():
    _, own, target, _ = gaussian(16)
    sample = features(400, 16)
    one, other = target.estimate(sample @ own), target.estimate(1.02 * sample @ own + 0.01)
    difference = other - one
    assert difference.value == pytest.approx(other.value - one.value)
    assert difference.se < 0.3 * math.hypot(one.se, other.se)
    with pytest.raises(ValueError, match="do not pair"):
        one - target.estimate(sample[:100])


@pytest.mark.parametrize("kept", [True, False])
def test_the_floor_is_what_as_many_real_images_have(kept):
    real = features(4000, 16, 3)
    whole = FeatureStatistics.of(real)
    state = {"mean": whole.mean, "covariance": whole.covariance} | ({"features": real} if kept else {})
    reference = Reference(state)
    fresh = [
        Target(whole.mean, whole.covariance).distance(FeatureStatistics.of(features(200, 16, s))) for s in range(50)
    ]
    floor = reference.floor(200)
    assert floor.value == pytest.approx(np.mean(fresh), abs=4 * floor.se + 4 * np.std(fresh) / 50**0.5)
    assert reference.floor(2000).value < 0.2 * floor.value and reference.floor(200) == floor
    seen = DetectorOutput(features(200, 16, 99), torch.full((200, 4), 0.25))
    metrics = reference.estimates_of(seen, ("fid", "fid_infinity", "fid_floor"))
    assert metrics["fid_floor"] == floor and metrics["fid_infinity"].value < metrics["fid"].value


@pytest.mark.parametrize("metric, least", [("is", 10), ("precision", 4), ("recall", 4), ("fid_infinity", 8)])
def test_a_probe_of_too_few_samples_for_a_metric_is_refused(metric, least):
    options = {"detector": "effnet_lite0", "metrics": ("fid", metric)}
    ProbeSpec(samples=least, **options)
    with pytest.raises(ValidationError, match=f"{metric} needs {least} or more"):
        ProbeSpec(samples=least - 1, **options)
