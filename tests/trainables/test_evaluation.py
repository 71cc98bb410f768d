import subprocess
import sys
import warnings

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import trainables.torchvision_guard  # noqa: F401  clean-fid imports torchvision
from trainables.config import ProbeSpec
from trainables.datasets import catalog
from trainables.datasets.latent_set import load_images
from trainables.evaluation import detectors, frechet_distance, inception_score, precision_recall
from trainables.evaluation.statistics import FeatureStatistics

EFFNET = ProbeSpec(detector="effnet_lite0")


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gaussian(count: int, dim: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and covariance of `count` correlated samples: singular where count <= dim."""
    samples = normal(count, dim, seed=seed) @ normal(dim, dim, seed=seed + 1) + normal(dim, seed=seed + 2)
    return samples.mean(dim=0), samples.T.cov()


# --- statistics ---------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(
    cuts=st.lists(st.integers(0, 60), max_size=6),
    offset=st.sampled_from([0.0, 1.0, -1e4]),
    seed=st.integers(0, 1000),
)
def test_shards_merge_to_one_pass(cuts, offset, seed):
    features = normal(60, 5, seed=seed) + offset
    merged = FeatureStatistics(5)
    for shard in features.tensor_split(sorted(cuts)):
        merged = merged.merge(FeatureStatistics.of(shard))
    whole = FeatureStatistics.of(features)
    assert merged.count == whole.count == 60
    torch.testing.assert_close(merged.mean, whole.mean, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(merged.covariance, whole.covariance, rtol=1e-10, atol=1e-10)


def test_batches_of_far_features_cancel_nothing():
    features = normal(1000, 8) + 1e6
    statistics = FeatureStatistics(8)
    for batch in features.split(7):
        statistics.update(batch)
    torch.testing.assert_close(statistics.mean, features.mean(dim=0), rtol=1e-12, atol=0)
    torch.testing.assert_close(statistics.covariance, features.T.cov(), rtol=1e-8, atol=1e-8)


def test_merging_leaves_both_parts_alone():
    one, other = FeatureStatistics.of(normal(5, 3)), FeatureStatistics.of(normal(4, 3, seed=1))
    before = one.mean.clone()
    one.merge(other).update(normal(2, 3))
    assert (one.count, other.count) == (5, 4) and torch.equal(one.mean, before)


def test_statistics_survive_a_file(tmp_path):
    statistics = FeatureStatistics.of(normal(20, 4).float())
    save_file(statistics.state_dict(), tmp_path / "s.safetensors")
    again = FeatureStatistics.from_state_dict(load_file(tmp_path / "s.safetensors"))
    assert again.count == 20 and again.mean.dtype == torch.float64
    assert torch.equal(again.mean, statistics.mean) and torch.equal(again.covariance, statistics.covariance)


def test_too_few_or_misshapen_features_are_refused():
    statistics = FeatureStatistics(3)
    with pytest.raises(ValueError, match="0 features"):
        _ = statistics.mean
    statistics.update(normal(1, 3))
    with pytest.raises(ValueError, match="2 or more"):
        _ = statistics.covariance
    with pytest.raises(ValueError, match=r"\(N, 3\)"):
        statistics.update(normal(5, 4))


# --- Frechet distance ---------------------------------------------------------------------------------------------


def by_scipy(mu1, sigma1, mu2, sigma2) -> float:
    root = scipy.linalg.sqrtm((sigma1 @ sigma2).numpy()).real
    return float((mu1 - mu2).square().sum() + (sigma1 + sigma2).trace() - 2 * np.trace(root))


@pytest.mark.parametrize("seed", range(3))
def test_frechet_equals_scipy_s_and_clean_fid_s(seed):
    one, other = gaussian(500, 64, 10 * seed), gaussian(400, 64, 10 * seed + 5)
    ours = frechet_distance(*one, *other)
    assert isinstance(ours, float)
    assert ours == pytest.approx(by_scipy(*one, *other), rel=1e-8)
    assert ours == pytest.approx(frechet_distance(*other, *one), rel=1e-10)
    assert ours == pytest.approx(frechet_distance(*(array.numpy() for array in (*one, *other))), rel=1e-12)
    clean_fid = pytest.importorskip("cleanfid.fid")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        theirs = clean_fid.frechet_distance(*(array.numpy() for array in (*one, *other)))
    assert ours == pytest.approx(float(theirs), rel=1e-6)


@pytest.mark.parametrize(("count1", "count2"), [(30, 500), (500, 30), (30, 20)])
def test_frechet_of_singular_covariances(count1, count2):
    one, other = gaussian(count1, 64, 1), gaussian(count2, 64, 2)
    # scipy's root of a singular product is good to half the digits
    assert frechet_distance(*one, *other) == pytest.approx(by_scipy(*one, *other), rel=1e-5)


def test_frechet_of_commuting_covariances_is_known_to_the_last_digits():
    # Ill-conditioned, and both singular in other directions; sum of (sqrt a - sqrt b)^2 in the common eigenbasis.
    basis = torch.linalg.qr(normal(64, 64)).Q
    a = torch.cat([torch.logspace(0, -8, 48, dtype=torch.float64), torch.zeros(16, dtype=torch.float64)])
    b = a.flip(0)
    sigmas = [(basis * values) @ basis.T for values in (a, b)]
    exact = float((a.sqrt() - b.sqrt()).square().sum())
    zero = torch.zeros(64)
    assert frechet_distance(zero, sigmas[0], zero, sigmas[1]) == pytest.approx(exact, rel=1e-10)


def test_frechet_of_equals_points_and_one_dimension():
    mu, sigma = gaussian(40, 64, 3)
    assert frechet_distance(mu, sigma, mu, sigma) == pytest.approx(0, abs=1e-10 * float(sigma.trace()))
    nothing = torch.zeros(64, 64)
    assert frechet_distance(mu, nothing, mu + 1, nothing) == pytest.approx(64)
    assert frechet_distance(np.array([0.0]), np.array([[4.0]]), np.array([3.0]), np.array([[1.0]])) == pytest.approx(10)


def test_frechet_refuses_what_it_cannot_compare():
    mu, sigma = gaussian(40, 8, 3)
    with pytest.raises(ValueError, match="shapes"):
        frechet_distance(mu, sigma, mu[:4], sigma[:4, :4])
    with pytest.raises(ValueError, match="not finite"):
        frechet_distance(mu, sigma, mu * torch.nan, sigma)


# --- Inception Score ----------------------------------------------------------------------------------------------


def test_inception_score_of_known_distributions():
    certain = torch.eye(5).repeat(20, 1)  # each row sure, all classes equally often
    assert inception_score(certain) == pytest.approx((5, 0))
    assert inception_score(torch.full((100, 5), 0.2)) == pytest.approx((1, 0))


def test_inception_score_by_the_definition():
    probs = normal(95, 7).softmax(dim=1)
    scores = []
    for part in (probs.numpy()[part * 95 // 3 : (part + 1) * 95 // 3] for part in range(3)):
        divergences = [sum(p * np.log(p / q) for p, q in zip(row, part.mean(axis=0), strict=True)) for row in part]
        scores.append(np.exp(np.mean(divergences)))
    assert inception_score(probs, splits=3) == pytest.approx((np.mean(scores), np.std(scores)))
    with pytest.raises(ValueError, match="2 rows"):
        inception_score(probs[:2], splits=3)


# --- precision and recall -----------------------------------------------------------------------------------------


def share_within(manifold: torch.Tensor, points: torch.Tensor, k: int) -> float:
    """The definition, one distance after the other."""
    radii = [sorted(float((a - b).norm()) for b in manifold)[k] for a in manifold]
    hits = [any((p - m).norm() <= r for m, r in zip(manifold, radii, strict=True)) for p in points]
    return sum(hits) / len(points)


def test_precision_and_recall_by_the_definition():
    real, fake = normal(40, 3), 0.7 * normal(30, 3, seed=1) + 0.8
    expected = (share_within(real, fake, 3), share_within(fake, real, 3))
    assert 0 < expected[1] < expected[0] < 1
    assert precision_recall(real, fake) == pytest.approx(expected)
    assert precision_recall(real.float() + 100, fake.float() + 100) == pytest.approx(expected)


def test_precision_and_recall_of_extremes():
    real = normal(50, 4)
    assert precision_recall(real, real.clone()) == (1, 1)
    assert precision_recall(real, real + 1000) == (0, 0)
    collapsed = real[:1] + 1e-3 * normal(50, 4, seed=1)
    precision, recall = precision_recall(real, collapsed)
    assert precision == 1 and recall < 0.1
    with pytest.raises(ValueError, match="k = 3"):
        precision_recall(real[:3], real)


# --- detectors ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def detector():
    pytest.importorskip("efficientnet_lite_pytorch")
    return detectors.create(EFFNET)


@pytest.fixture(scope="module")
def images():
    images, _ = load_images("emoji9", "train")
    return images[::9]


def test_features_and_probabilities(detector, images):
    features, probs, spatial = detector(images[:70])
    assert features.shape == (70, detector.feature_dim) == (70, 1280) and features.dtype == torch.float32
    assert probs.shape == (70, 1000) and probs.dtype == torch.float32
    torch.testing.assert_close(probs.sum(dim=1), torch.ones(70))
    torch.testing.assert_close(detector(images[:3])[0], features[:3], rtol=1e-3, atol=1e-3)
    assert spatial is None and not detector.training
    assert detector.identity == "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def test_the_weights_are_those_of_the_package_s_own_network(detector, images):
    pixels = (images[:2].float() - 127) / 128
    pixels = torch.nn.functional.interpolate(pixels, (64, 64), mode="bilinear", antialias=True)
    torch.testing.assert_close(detector.network(pixels).softmax(dim=1), detector(images[:2])[1], rtol=1e-3, atol=1e-5)


def test_creating_a_detector_draws_nothing_from_the_global_generator(detector):
    state = torch.get_rng_state()
    detectors.create(EFFNET)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_distance_grows_with_the_damage(detector, images):
    def distance(noise: float) -> float:
        damaged = images[1::2].float() + noise * torch.randn(images[1::2].shape, generator=generator)
        features = detector(damaged.clamp(0, 255).to(torch.uint8))[0]
        statistics = FeatureStatistics.of(features)
        return frechet_distance(real.mean, real.covariance, statistics.mean, statistics.covariance)

    generator = torch.Generator().manual_seed(0)
    real = FeatureStatistics.of(detector(images[::2])[0])
    floor, little, much = distance(0), distance(15), distance(60)
    assert floor < little < much


def test_weights_of_something_else_are_refused(tmp_path):
    file = tmp_path / "other.pth"
    for content in ({"fc.bias": torch.zeros(1008)}, {"fc.bias": torch.zeros(10)}, [1, 2]):
        torch.save(content, file)
        spec = ProbeSpec(detector_weights=str(file), detector_sha256=catalog.file_identity(file))
        with pytest.raises(ValueError, match="does not hold the weights of the FID Inception"):
            detectors.create(spec)
        with pytest.raises(LookupError, match="SHA-256"):
            detectors.create(ProbeSpec(detector_weights=str(file)))


def test_a_missing_package_names_the_remedy():
    program = """
import sys
sys.modules["efficientnet_lite_pytorch"] = None
from trainables.evaluation import detectors
from trainables.config import ProbeSpec
try:
    detectors.create(ProbeSpec(detector="effnet_lite0"))
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "pip install 'raysweep[laptop]'" in done.stdout and len(done.stdout.splitlines()) == 1
