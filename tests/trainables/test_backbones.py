"""Backbones by name, their taps, weights and cost, and references turned to our clock."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from trainables import backbones
from trainables.backbones import BACKBONES, LightningDiT, SiT
from trainables.backbones.costs import cost
from trainables.backbones.lightningdit import Rotary

TINY: dict[str, Any] = {
    "input_size": 8, "patch_size": 2, "in_channels": 3, "num_classes": 5, "depth": 4, "hidden_size": 32, "num_heads": 2,
}  # fmt: skip
ALL_OFF: dict[str, Any] = {"use_swiglu": False, "use_rope": False, "use_rmsnorm": False}
# Every switch of LightningDiT in both positions, with both norms of queries and keys.
VARIANTS: list[dict[str, Any]] = [
    {},
    {"use_qknorm": True, "wo_shift": True},
    ALL_OFF,
    ALL_OFF | {"use_qknorm": True, "use_rope": True},
]
MODELS: list[tuple[type[SiT] | type[LightningDiT], dict[str, Any]]] = [
    (SiT, {}), *((LightningDiT, variant) for variant in VARIANTS),
]  # fmt: skip


def tiny(model: type[SiT] | type[LightningDiT] = SiT, **config: Any) -> Any:
    """A small network with no zero weight, so that every block and every condition shows in the output."""
    made = model(**TINY | config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.2, generator=generator)
    return made.eval()


def inputs(batch: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x_t = torch.randn(batch, 3, 8, 8, generator=generator)
    return x_t, torch.rand(batch, generator=generator), torch.tensor([0, 4, 5])[:batch]


SD_VAE, VA_VAE = (4, 32, 32), (32, 16, 16)


@pytest.mark.parametrize(
    ("name", "latent", "trainable", "with_sigma", "fixed", "giga"),
    [
        ("SiT-S/2", SD_VAE, 32_858_896, 32_865_056, 98_304, 6.05),
        ("SiT-B/2", SD_VAE, 130_303_504, 130_315_808, 196_608, 23.00),
        ("SiT-L/2", SD_VAE, 457_824_272, 457_840_672, 262_144, 80.69),
        ("SiT-XL/2", SD_VAE, 674_816_272, 674_834_720, 294_912, 118.62),
        # Published as 130M and 675M; tables: positions, and cosines and sines of 64 and 72 channels a head.
        ("LightningDiT-B/1", VA_VAE, 130_359_584, 130_384_192, 256 * (768 + 2 * 64), 23.01),
        ("LightningDiT-XL/1", VA_VAE, 674_961_824, 674_998_720, 256 * (1152 + 2 * 72), 118.63),
    ],
)
def test_costs_are_the_published_ones(
    name: str, latent: tuple[int, int, int], trainable: int, with_sigma: int, fixed: int, giga: float
) -> None:
    counted = cost(name, latent)
    assert (counted.tokens, counted.parameters, counted.fixed) == (256, trainable, fixed)
    assert counted.parameters_with_sigma == with_sigma
    assert round(counted.multiply_adds / 1e9, 2) == giga
    assert counted.multiply_adds_with_sigma > counted.multiply_adds


def test_costs_are_of_the_network_that_create_makes() -> None:
    model = backbones.create("LightningDiT-T/2", in_channels=3, input_size=8, num_classes=5)
    counted = cost("LightningDiT-T/2", (3, 8, 8), num_classes=5)
    assert counted.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert (counted.fixed, counted.tokens) == (sum(buffer.numel() for buffer in model.buffers()), model.num_tokens)
    with pytest.raises(ValueError, match="latents must be square"):
        cost("LightningDiT-T/2", (3, 8, 16))


def test_the_tiny_ones_are_as_deep_as_those_they_stand_for() -> None:
    for family in ("SiT", "LightningDiT"):
        for tiny_size, size in {"T": "B", "T24": "L", "T28": "XL"}.items():
            assert BACKBONES[f"{family}-{tiny_size}/2"].depth == BACKBONES[f"{family}-{size}/2"].depth


@pytest.mark.parametrize("name", ["SiT-T/2", "SiT-T/4", "SiT-T/8", "LightningDiT-T/1", "LightningDiT-T/2"])
def test_create_takes_its_shape_from_the_name_and_the_data(name: str) -> None:
    model, patch = backbones.create(name, input_size=16, in_channels=3, num_classes=7, depth=2), BACKBONES[name].patch
    assert type(model).__name__ == BACKBONES[name].family
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
    for model in (SiT, LightningDiT):
        with pytest.raises(ValueError, match="multiple"):
            model(**TINY | wrong)


def test_a_head_without_pairs_for_each_axis_is_refused_rotary_positions() -> None:
    odd = {"hidden_size": 36, "num_heads": 6}
    with pytest.raises(ValueError, match="hidden_size / num_heads 6 must be a multiple of 4"):
        LightningDiT(**TINY | odd)
    assert LightningDiT(**TINY | odd, use_rope=False).feat_rope is None


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


@pytest.mark.parametrize("variant", VARIANTS)
def test_new_lightningdits_have_their_tables_and_start_as_the_identity(variant: dict[str, Any]) -> None:
    model = backbones.create("LightningDiT-T/2", **TINY | variant)
    weights, fresh = model.state_dict(), LightningDiT(**TINY | variant).state_dict()
    assert list(weights) == list(fresh)
    for name in {"pos_embed", "feat_rope.freqs_cos", "feat_rope.freqs_sin"} & set(weights):
        assert torch.equal(weights[name], fresh[name])
    norms = [name for name in weights if "norm" in name]
    assert all(torch.equal(weights[name], torch.full_like(weights[name], name.endswith("weight"))) for name in norms)
    assert all(tensor.isfinite().all() for tensor in weights.values())
    velocity, hidden = model(*inputs(), taps=(1, 4))
    assert not velocity.any()
    assert torch.equal(hidden[1], hidden[4])


def test_a_lightningdit_with_every_part_switched_off_is_a_sit() -> None:
    sit, lightningdit = tiny(), LightningDiT(**TINY | ALL_OFF).eval()
    lightningdit.load_state_dict(sit.state_dict())
    assert torch.equal(lightningdit(*inputs()).velocity, sit(*inputs()).velocity)


def test_without_shift_is_with_shifts_of_zero() -> None:
    without, shifted = tiny(LightningDiT, wo_shift=True), LightningDiT(**TINY).eval()
    state = without.state_dict()
    for name, tensor in state.items():
        if name.startswith("blocks") and "adaLN" in name:
            scale_a, gate_a, scale_m, gate_m = tensor.chunk(4)
            none = torch.zeros_like(scale_a)
            state[name] = torch.cat([none, scale_a, gate_a, none, scale_m, gate_m])
    shifted.load_state_dict(state)
    torch.testing.assert_close(shifted(*inputs()).velocity, without(*inputs()).velocity)


def test_rotary_positions_make_products_depend_on_the_distance_alone() -> None:
    grid, rotary = 4, Rotary(8, 4)
    q, k = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(2))
    products = rotary(q.expand(1, 1, 16, 8))[0, 0] @ rotary(k.expand(1, 1, 16, 8))[0, 0].T  # (T, T)
    by_distance: dict[tuple[int, int], list[float]] = {}
    for i in range(grid**2):
        for j in range(grid**2):
            distance = (i // grid - j // grid, i % grid - j % grid)
            by_distance.setdefault(distance, []).append(products[i, j].item())
    assert all(max(similarities) - min(similarities) < 1e-5 for similarities in by_distance.values())
    assert by_distance[0, 0][0] == pytest.approx((q * k).sum().item(), abs=1e-5)
    assert abs(by_distance[0, 1][0] - by_distance[1, 0][0]) > 1e-3


@pytest.mark.parametrize(("model", "variant"), MODELS)
@settings(deadline=None, max_examples=10)
@given(taps=st.sets(st.integers(1, 4)))
def test_taps_are_exactly_the_blocks_asked_for_and_change_nothing(
    model: type[SiT], variant: dict[str, Any], taps: set[int]
) -> None:
    model = tiny(model, **variant)
    plain, hidden = model(*inputs(), taps=taps)
    everything = model(*inputs(), taps=(1, 2, 3, 4))
    assert set(hidden) == taps
    assert all(torch.equal(hidden[block], everything.hidden[block]) for block in taps)
    assert torch.equal(plain, everything.velocity)


@pytest.mark.parametrize("family", [SiT, LightningDiT])
@pytest.mark.parametrize("block", [1, 2, 3, 4])
def test_features_are_the_tap_and_nothing_behind_it_is_computed(block: int, family: type[SiT]) -> None:
    model = tiny(family)
    expected = model(*inputs(), taps=(block,)).hidden[block]
    ran: list[nn.Module] = []
    for layer in [*model.blocks, model.final_layer]:
        layer.register_forward_hook(lambda layer, given, returned: ran.append(layer))
    assert torch.equal(model.features(*inputs(), block), expected)
    assert ran == list(model.blocks)[:block]
    assert expected.shape == (3, model.num_tokens, model.width)


@pytest.mark.parametrize(("family", "bound"), [(SiT, 1e-12), (LightningDiT, 1e-6)])  # whose norms are in float32
def test_several_labels_for_an_image_are_several_images(family: type[SiT], bound: float) -> None:
    model, (x_t, t, y) = tiny(family).double(), inputs()
    x_t, t = x_t.double(), t.double()
    null = torch.full_like(y, model.num_classes)
    by_block = model.states(x_t, t, torch.cat([y, null]), (2, 4))
    assert by_block.keys() == {2, 4}
    for block, states in by_block.items():
        twice = model.features(torch.cat([x_t, x_t]), torch.cat([t, t]), torch.cat([y, null]), block)
        torch.testing.assert_close(states, twice, rtol=bound, atol=bound)


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


@pytest.mark.parametrize(("model", "variant"), MODELS)
def test_every_parameter_learns(model: type[SiT], variant: dict[str, Any]) -> None:
    network = tiny(model, **variant)
    network(*inputs()).velocity.square().mean().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(("model", "variant"), MODELS)
def test_checkpointed_blocks_are_computed_twice_and_give_the_same_gradients(
    model: type[SiT], variant: dict[str, Any]
) -> None:
    gradients, runs = [], []
    for checkpointed in (False, True):
        network = tiny(model, **variant).train()
        network.checkpoint_blocks = checkpointed
        ran: list[nn.Module] = []
        network.blocks[1].attn.register_forward_hook(lambda layer, given, returned, ran=ran: ran.append(layer))
        velocity, hidden = network(*inputs(), taps=(2,))
        (velocity.square().mean() + hidden[2].mean()).backward()
        gradients.append(
            {name: parameter.grad for name, parameter in network.named_parameters()} | {"velocity": velocity}
        )
        runs.append(len(ran))
        with torch.no_grad():  # nothing to save where there is no gradient
            network(*inputs())
        assert len(ran) == runs[-1] + 1
    assert runs == [1, 2]
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


def test_lightningdit_runs_in_half_precision_beside_its_float32_norms_and_tables() -> None:
    network = tiny(LightningDiT, use_qknorm=True)
    expected = network(*inputs()).velocity
    with torch.autocast("cpu", torch.bfloat16):
        velocity = network(*inputs()).velocity
    assert (velocity - expected).norm() < 0.05 * expected.norm()


# --- references --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("source", "unused"), [("repa", "projectors.0.0.weight"), ("sra", "ap_head.linear1.weight")])
def test_weights_on_our_clock_are_ours_without_their_heads(source: str, unused: str) -> None:
    model = tiny()
    state = model.state_dict() | {unused: torch.zeros(2, 2)}
    assert backbones.guess_source(state) == source
    loaded = backbones.from_reference(state, source, **TINY)
    assert torch.equal(loaded(*inputs()).velocity, model(*inputs()).velocity)


@pytest.mark.parametrize("learn_sigma", [False, True])
@pytest.mark.parametrize(("source", "family"), [("sit", SiT), ("layersync", SiT), ("lightningdit", LightningDiT)])
def test_weights_on_the_reversed_clock_run_on_ours(learn_sigma: bool, source: str, family: type[SiT]) -> None:
    theirs, (x_t, t, y) = tiny(family), inputs()
    state = theirs.state_dict()
    if learn_sigma:
        for name in ("final_layer.linear.weight", "final_layer.linear.bias"):
            velocity = state[name].unflatten(0, (4, 3))  # (p*p, C, ...)
            state[name] = torch.cat([velocity, torch.randn_like(velocity)], dim=1).flatten(0, 1)
    if learn_sigma and family is SiT:
        assert backbones.guess_source(state) == "sit"  # LayerSync's are read alike
    ours = backbones.from_reference(state, source, **TINY, learn_sigma=learn_sigma)
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


@pytest.mark.parametrize(("model", "variant"), MODELS)
@pytest.mark.parametrize("shape", [{}, {"patch_size": 1, "mlp_ratio": 2.7, "depth": 2}, {"num_heads": 4}])
@pytest.mark.parametrize("wrapper", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_the_tensors_tell_the_configuration(
    model: type[SiT], variant: dict[str, Any], shape: dict[str, Any], wrapper: str
) -> None:
    theirs, source = tiny(model, **variant | shape), "repa" if model is SiT else "lightningdit"
    state = {wrapper + name: tensor for name, tensor in theirs.state_dict().items()}
    told_heads = variant.get("use_rope", model is LightningDiT) or variant.get("use_qknorm")
    heads = {} if told_heads else {"num_heads": theirs.blocks[0].attn.num_heads}
    config = backbones.reference_config(state, **heads)
    assert config | {"mlp_ratio": 0} == TINY | shape | variant_config(model, variant) | {"mlp_ratio": 0}
    for loaded in (
        backbones.from_reference(state, source, **heads),
        backbones.from_reference(state, source, **config),
    ):
        x_t, t, y = inputs()
        expected = theirs(x_t, t, y).velocity if model is SiT else -theirs(x_t, 1 - t, y).velocity
        assert torch.equal(loaded(x_t, t, y).velocity, expected)


def variant_config(model: type[SiT], variant: dict[str, Any]) -> dict[str, Any]:
    """All five switches; none where nothing shows that it is not a SiT."""
    if model is SiT or variant == ALL_OFF:
        return {}
    switches = {"use_qknorm": False, "use_swiglu": True, "use_rope": True, "use_rmsnorm": True, "wo_shift": False}
    return switches | variant


def test_heads_follow_from_a_known_shape_and_must_be_given_for_others() -> None:
    known = backbones.create("SiT-T/2", input_size=8, num_classes=3)
    assert backbones.reference_config(known.state_dict())["num_heads"] == 3
    assert backbones.from_reference(known.state_dict(), "repa").blocks[0].attn.num_heads == 3
    with pytest.raises(ValueError, match="num_heads cannot be read.* 4 blocks of width 32"):
        backbones.from_reference(tiny().state_dict(), "repa")


def test_the_source_of_weights_is_guessed_from_the_tensors() -> None:
    assert backbones.guess_source(tiny().state_dict()) is None  # on which clock?
    assert backbones.guess_source(tiny(LightningDiT).state_dict()) == "lightningdit"
    assert backbones.guess_source(tiny(LightningDiT, **ALL_OFF | {"use_rmsnorm": True}).state_dict()) == "lightningdit"
    assert backbones.guess_source({}) is None


def test_what_repositories_know_beside_us_is_let_pass_and_the_rest_refused() -> None:
    state = tiny().state_dict()
    theirs = {"class_dropout_prob": 0.1, "encoder_depth": 8, "z_dims": [768], "projector_dim": 2048, "fused_attn": True}
    backbones.from_reference(state, "repa", **TINY, **theirs, learn_sigma=False, use_cfg=True, path_type="linear")
    backbones.from_reference(tiny(LightningDiT).state_dict(), "lightningdit", use_checkpoint=False)
    for wrong in ({"hiden_size": 32}, {"use_rope": True}, {"reversed_clock": True}):
        with pytest.raises(ValueError, match=f"SiT has no argument {next(iter(wrong))}"):
            backbones.from_reference(state, "repa", **TINY, **wrong)
    with pytest.raises(ValueError, match="not a backbone's state dict: it has no x_embedder.proj.weight"):
        backbones.reference_config({"weight": torch.zeros(1)})
