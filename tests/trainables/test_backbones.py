"""SiT by name, its taps, its weights, and references turned to our clock."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from trainables import backbones
from trainables.backbones import BACKBONES, SiT

TINY: dict[str, Any] = {
    "input_size": 8, "in_channels": 3, "num_classes": 5, "depth": 4, "hidden_size": 32, "num_heads": 2,
}  # fmt: skip


def tiny(**config: Any) -> SiT:
    """A small network with no zero weight, so that every block and every condition shows in the output."""
    model = SiT(**TINY | config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2, generator=generator)
    return model.eval()


def inputs(batch: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x_t = torch.randn(batch, 3, 8, 8, generator=generator)
    return x_t, torch.rand(batch, generator=generator), torch.tensor([0, 4, 5])[:batch]


@pytest.mark.parametrize(
    ("name", "trainable", "positions"),
    [
        ("SiT-S/2", 32_858_896, 98_304),
        ("SiT-B/2", 130_303_504, 196_608),
        ("SiT-L/2", 457_824_272, 262_144),
        ("SiT-XL/2", 674_816_272, 294_912),
    ],
)
def test_sizes_are_the_published_ones(name: str, trainable: int, positions: int) -> None:
    size = BACKBONES[name]
    with torch.device("meta"):
        model = SiT(depth=size.depth, hidden_size=size.width, num_heads=size.heads, patch_size=size.patch)
    assert sum(parameter.numel() for parameter in model.parameters()) == trainable
    assert model.pos_embed.numel() == positions


@pytest.mark.parametrize("patch", [2, 4, 8])
def test_create_takes_its_shape_from_the_name_and_the_data(patch: int) -> None:
    model = backbones.create(f"SiT-T/{patch}", input_size=16, in_channels=3, num_classes=7, depth=2)
    assert (model.depth, model.width, model.num_tokens) == (2, 96, (16 // patch) ** 2)
    assert (model.patch_size, model.in_channels, model.num_classes) == (patch, 3, 7)
    velocity, hidden = model(torch.randn(2, 3, 16, 16), torch.rand(2), torch.tensor([0, 7]))
    assert velocity.shape == (2, 3, 16, 16)
    assert hidden == {}


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"no backbone 'SiT-Q/3'; known: .*SiT-B/2"):
        backbones.create("SiT-Q/3")


@pytest.mark.parametrize("wrong", [{"patch_size": 3}, {"num_heads": 5}, {"hidden_size": 6, "num_heads": 3}])
def test_sizes_that_do_not_divide_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="multiple"):
        SiT(**TINY | wrong)


def test_a_seed_gives_the_same_weights_whatever_the_global_generator_and_leaves_it_alone() -> None:
    made = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        made.append(backbones.create("SiT-T/2", seed=3, **TINY).state_dict())
        assert torch.equal(torch.get_rng_state(), before)
    other = backbones.create("SiT-T/2", seed=4, **TINY).state_dict()
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])
    assert not torch.equal(made[0]["blocks.0.attn.qkv.weight"], other["blocks.0.attn.qkv.weight"])


def test_new_weights_are_finite_and_start_as_published() -> None:
    model = backbones.create("SiT-T/2", **TINY | {"hidden_size": 96, "num_heads": 3})
    weights = model.state_dict()
    assert all(tensor.isfinite().all() for tensor in weights.values())
    assert torch.equal(weights["pos_embed"], SiT(**TINY | {"hidden_size": 96}).pos_embed)
    assert weights["t_embedder.mlp.0.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    assert weights["blocks.0.mlp.fc1.weight"].abs().max().item() == pytest.approx((6 / (96 + 384)) ** 0.5, rel=0.01)
    assert weights["x_embedder.proj.weight"].abs().max().item() == pytest.approx((6 / (12 + 96)) ** 0.5, rel=0.01)
    x_t, t, y = inputs()
    velocity, hidden = model(x_t, t, y, taps=(1, 4))
    assert not velocity.any()  # the final layer is zero
    assert torch.equal(hidden[1], hidden[4])  # and so are the gates: each block is the identity


@settings(deadline=None, max_examples=20)
@given(taps=st.sets(st.integers(1, 4)))
def test_taps_are_exactly_the_blocks_asked_for_and_change_nothing(taps: set[int]) -> None:
    model = tiny()
    plain, hidden = model(*inputs(), taps=taps)
    everything = model(*inputs(), taps=(1, 2, 3, 4))
    assert set(hidden) == taps
    assert all(torch.equal(hidden[block], everything.hidden[block]) for block in taps)
    assert torch.equal(plain, everything.velocity)


@pytest.mark.parametrize("block", [1, 2, 3, 4])
def test_features_are_the_tap_and_nothing_behind_it_is_computed(block: int) -> None:
    model = tiny()
    expected = model(*inputs(), taps=(block,)).hidden[block]
    ran: list[nn.Module] = []
    for layer in [*model.blocks, model.final_layer]:
        layer.register_forward_hook(lambda layer, given, returned: ran.append(layer))
    assert torch.equal(model.features(*inputs(), block), expected)
    assert ran == list(model.blocks)[:block]
    assert expected.shape == (3, model.num_tokens, model.width)


@pytest.mark.parametrize("block", [0, 5, -1])
def test_a_block_that_is_not_there_is_refused(block: int) -> None:
    model = tiny()
    with pytest.raises(ValueError, match="there are 4, counted from 1"):
        model(*inputs(), taps=(block,))
    with pytest.raises(ValueError, match="there are 4, counted from 1"):
        model.features(*inputs(), block)


def test_images_do_not_see_each_other_and_time_and_label_matter() -> None:
    model, (x_t, t, y) = tiny(), inputs()
    velocity = model(x_t, t, y).velocity
    torch.testing.assert_close(model(x_t[1:2], t[1:2], y[1:2]).velocity, velocity[1:2], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(model(x_t, 1 - t, y).velocity, velocity)
    assert not torch.allclose(model(x_t, t, torch.full_like(y, model.num_classes)).velocity[:2], velocity[:2])


def test_every_parameter_learns() -> None:
    model = tiny()
    model(*inputs()).velocity.square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_repas_weights_are_ours_without_its_projectors() -> None:
    model = tiny()
    state = model.state_dict() | {"projectors.0.0.weight": torch.zeros(2, 2)}
    loaded = backbones.from_reference(state, "repa", **TINY)
    assert torch.equal(loaded(*inputs()).velocity, model(*inputs()).velocity)


@pytest.mark.parametrize("learn_sigma", [False, True])
def test_official_weights_run_on_our_clock(learn_sigma: bool) -> None:
    theirs, (x_t, t, y) = tiny(), inputs()
    state = theirs.state_dict()
    if learn_sigma:
        for name in ("final_layer.linear.weight", "final_layer.linear.bias"):
            velocity = state[name].unflatten(0, (4, 3))  # (p*p, C, ...)
            state[name] = torch.cat([velocity, torch.randn_like(velocity)], dim=1).flatten(0, 1)
    ours = backbones.from_reference(state, "sit", **TINY, learn_sigma=learn_sigma)
    expected = theirs(x_t, 1 - t, y, taps=(2,))
    velocity, hidden = ours(x_t, t, y, taps=(2,))
    assert torch.equal(velocity, -expected.velocity)
    assert torch.equal(hidden[2], expected.hidden[2])
    assert torch.equal(ours.features(x_t, t, y, 2), expected.hidden[2])


def test_a_reference_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="no reference 'dit'; known: repa, sit"):
        backbones.from_reference({}, "dit", **TINY)
    with pytest.raises(RuntimeError, match="t_embedder"):
        state = tiny().state_dict()
        del state["t_embedder.mlp.0.weight"]
        backbones.from_reference(state, "repa", **TINY)
