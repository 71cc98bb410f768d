"""Laws of looking into a backbone: colours follow structure, scores follow clusters, t=0 is clean data."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainables import backbones, features
from trainables.datasets.autoencoders import load_autoencoder


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clusters(distance: float, classes: int = 4, per_class: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit noise around centres that many units from the origin, in 16 dimensions."""
    labels = torch.arange(classes).repeat_interleave(per_class)
    noise = torch.randn(len(labels), 16, generator=seeded(0))
    return noise + distance * torch.eye(16)[labels], labels


@pytest.fixture(scope="module")
def backbone():
    """A small SiT whose velocity and blocks are not those of fresh weights, which are the identity."""
    model = backbones.create("SiT-T/2", in_channels=8, input_size=8, num_classes=9)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=seeded(1))
    return model.eval()


# --- colours


@given(st.integers(0, 10_000), st.floats(0.1, 100), st.integers(2, 4))
def test_colours_do_not_depend_on_basis_scale_or_offset(seed, scale, grid):
    source = seeded(seed)
    sides = torch.tensor([8.0, 4.0, 2.0, 0.5, 0.25])  # components that are told apart
    tokens = torch.randn(3, grid**2, 5, generator=source, dtype=torch.float64).exp() * sides
    rotation, _ = torch.linalg.qr(torch.randn(5, 5, generator=source, dtype=torch.float64))
    colours = features.pca_rgb(tokens, grid)
    assert colours.shape == (3, grid, grid, 3)
    assert colours.min() >= 0 and colours.max() <= 1
    torch.testing.assert_close(features.pca_rgb(scale * tokens @ rotation + 3, grid), colours, atol=1e-4, rtol=0)


def test_the_first_component_is_red_and_tokens_stay_in_place():
    tokens = 1e-3 * torch.randn(2, 9, 6, generator=seeded(0))
    tokens[1, 5] += 10  # image 1, second row, third column
    colours = features.pca_rgb(tokens, 3)
    assert colours[1, 1, 2, 0] == 1
    assert (colours[..., 0] > 0.5).sum() == 1


def test_constant_tokens_have_a_colour():
    assert features.pca_rgb(torch.ones(1, 4, 8), 2).isfinite().all()


def test_tokens_that_fill_no_grid_are_refused():
    with pytest.raises(ValueError, match=r"3\*3"):
        features.pca_rgb(torch.ones(1, 4, 8), 3)


# --- scores


def test_far_clusters_are_separable_and_noise_is_not():
    near, far = (features.separability(*clusters(distance)) for distance in (0.0, 50.0))
    assert far.neighbour_accuracy == 1 and far.silhouette > 0.9
    assert near.neighbour_accuracy < 0.5 and near.silhouette < 0.1


def test_wrong_labels_have_a_negative_silhouette():
    points, labels = clusters(50.0)
    score = features.separability(points, labels % 2 + torch.arange(len(labels)) % 2 * 2)
    assert score.silhouette < 0.1


@given(st.floats(0.01, 100))
def test_scores_see_directions_only(scale):
    points, labels = clusters(3.0)
    lengths = scale * torch.rand(len(points), 1, generator=seeded(2)).add(0.5)
    assert features.separability(points * lengths, labels) == pytest.approx(features.separability(points, labels))


def test_a_point_is_not_its_own_neighbour():
    # Pairs of different classes at one place each: who looks at itself finds its own class, who does not never does.
    points = torch.eye(3).repeat_interleave(2, dim=0)
    assert features.separability(points, torch.tensor([0, 1, 0, 1, 0, 1])).neighbour_accuracy < 0.5


@pytest.mark.parametrize("labels", [[1, 1, 1], [0, 1, 2]])
def test_scores_without_classes_are_refused(labels):
    with pytest.raises(ValueError, match="classes among 3 points"):
        features.separability(torch.eye(3), torch.tensor(labels))


def test_tsne_is_seeded_and_keeps_neighbours():
    points, labels = clusters(20.0)
    plane = features.tsne(points, seed=3)
    assert plane.shape == (len(points), 2)
    assert torch.equal(plane, features.tsne(points, seed=3))
    nearest = torch.cdist(plane, plane).fill_diagonal_(torch.inf).argmin(dim=1)
    assert (labels[nearest] == labels).all()


# --- features


def test_at_time_zero_the_blocks_see_clean_data(backbone):
    latents, noise = torch.randn(2, 3, 8, 8, 8, generator=seeded(4))
    labels = torch.tensor([0, 1, 2])
    seen = features.block_features(backbone, latents, labels, 0.0, [2, 12], noise)
    assert {block: hidden.shape for block, hidden in seen.items()} == {2: (3, 16, 96), 12: (3, 16, 96)}
    clean = backbone.features(latents, torch.zeros(3), labels, 12)
    torch.testing.assert_close(seen[12], clean)
    assert not torch.equal(features.block_features(backbone, latents, labels, 0.5, [2], noise)[2], seen[2])


def test_guiding_features_are_linear_in_the_scale(backbone):
    x_t = torch.randn(3, 8, 8, 8, generator=seeded(5))
    t, labels = torch.full((3,), 0.5), torch.tensor([0, 4, 8])
    unconditional, conditional, tenfold = (
        features.guiding_features(backbone, x_t, t, labels, 8, scale) for scale in (0.0, 1.0, 10.0)
    )
    assert conditional.shape == (3, 96)
    torch.testing.assert_close(conditional, backbone.features(x_t, t, labels, 8).mean(dim=1).detach())
    torch.testing.assert_close(tenfold, unconditional + 10 * (conditional - unconditional), atol=1e-4, rtol=1e-4)


def test_a_scene_takes_the_classes_by_turns_and_a_smaller_one_is_its_beginning():
    autoencoder = load_autoencoder()
    large, small = (features.scene("emoji9", autoencoder, count=count, most_classes=5, seed=0) for count in (20, 10))
    assert large.labels.bincount().tolist() == [4] * 5
    for one, other in zip(large.first(10), small, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)  # the autoencoder rounds by batch size
