"""Every method over every backbone: gradients reach what should move, nothing frozen moves, the loss is a finite
scalar that does not depend on the number of ranks. Then each method against its own equation."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from trainables import backbones, methods
from trainables.draws import generator
from trainables.interpolant import interpolate
from trainables.methods import METHODS, Batch, View
from trainables.methods.self_guided import guided_feature
from trainables.methods.vae_align import patchify
from trainables.training.training_step import TrainingStep, split

BACKBONES = [name for name in ("SiT-T/2", "LightningDiT-T/1") if name in backbones.BACKBONES]
WEIGHT = 0.5
DISPERSIVE = ("infonce_l2", "infonce_cosine", "hinge", "covariance")


class Encoder(nn.Module):
    """A small one: each token a linear map of its patch of the picture."""

    width = 12

    def __init__(self, grid: int):
        super().__init__()
        self.patches = nn.Conv2d(3, self.width, 16 // grid, stride=16 // grid)
        nn.init.normal_(self.patches.weight, generator=torch.Generator().manual_seed(0))
        nn.init.zeros_(self.patches.bias)

    def forward(self, images: Tensor) -> Tensor:
        return self.patches(images / 255).flatten(2).transpose(1, 2)


class Cast:
    """A student and all networks that a method may use. Nothing is frozen here: the methods must do that."""

    def __init__(self, name: str):
        self.backbone, self.teacher, self.average = (make_backbone(name, seed) for seed in (0, 1, 2))
        self.encoder = Encoder(self.backbone.grid)
        self.view = View(self.average, "linear")

    @property
    def frozen(self) -> nn.ModuleList:
        return nn.ModuleList([self.teacher, self.average, self.encoder])

    def method(self, kind: str, **options):
        width, drawn = self.backbone.width, generator(0, "method", kind)
        projected = {"width": width, "projector_width": 16, "generator": drawn}
        geometry = {"patch": self.backbone.patch_size, "channels": self.backbone.in_channels}
        defaults = {
            "none": {},
            "vae_align": projected | geometry | {"block": 3},
            "self_guided": projected | {"teacher": self.teacher, "layers": (4, 3), "guidance_scale": 30.0},
            "repa": projected | {"encoder": self.encoder, "block": 2},
            "dispersive": {"block": 6},
            "layersync": {"layers": ((5, 2), (4, 3))},
            "sra": {"width": width, "generator": drawn, "layers": (5, 3)},
        }[kind]
        return methods.create(kind, **defaults | options)


DEEPEST = {"vae_align": 3, "self_guided": 3, "repa": 2, "dispersive": 6, "layersync": 3, "sra": 3}  # of those that move


def make_backbone(name: str, seed: int):
    model = backbones.create(name, seed=seed, in_channels=8, input_size=8, num_classes=9, depth=6)
    with torch.no_grad():  # away from the start, where the zero layers stop all gradients
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
    return model


def make_batch() -> Batch:
    source = torch.Generator().manual_seed(1)
    latents, noise = (torch.randn(4, 8, 8, 8, generator=source) for _ in range(2))
    t, offset = torch.rand(4, generator=source), torch.rand(4, generator=source)
    return Batch(
        latents,
        noise,
        *interpolate(latents, noise, t),
        t,
        labels=torch.tensor([0, 3, 5, 8]),
        y=torch.tensor([0, 9, 5, 8]),
        offset=offset,
        images=torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=source),
    )


@pytest.fixture
def batch():
    return make_batch()


@pytest.fixture
def cast():
    return Cast("SiT-T/2")


# --- the contract -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("kind", METHODS)
def test_the_contract_of_a_method(kind, name, batch):
    cast = Cast(name)
    before = {name: tensor.clone() for name, tensor in cast.frozen.state_dict().items()}
    step = TrainingStep(cast.backbone, cast.method(kind))
    losses = step(batch, WEIGHT, cast.view)
    assert losses.total.shape == losses.method.shape == () and losses.total.isfinite()
    torch.testing.assert_close(losses.total.detach(), losses.diffusion + WEIGHT * losses.method)
    losses.total.backward()
    for name, parameter in step.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    assert all(parameter.grad is None for parameter in cast.frozen.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in cast.frozen.state_dict().items())
    assert not {*map(id, cast.frozen.parameters())} & {*map(id, step.parameters())}
    alone = TrainingStep(cast.backbone, cast.method("none"))(batch)
    assert torch.equal(alone.diffusion, losses.diffusion) and torch.equal(alone.total.detach(), alone.diffusion)


@pytest.mark.parametrize("kind", METHODS)
def test_a_method_continues_from_its_state(kind, cast, batch):
    step = TrainingStep(cast.backbone, cast.method(kind))
    with torch.no_grad():
        for parameter in step.method.parameters():
            parameter.mul_(1.5)
    again = cast.method(kind)
    again.load_state_dict(step.method.state_dict())
    expected = step(batch, WEIGHT, cast.view).total
    assert torch.equal(TrainingStep(cast.backbone, again)(batch, WEIGHT, cast.view).total, expected)


@pytest.mark.parametrize("kind", DEEPEST)
def test_a_method_s_own_loss_moves_the_blocks_up_to_where_it_reads(kind, cast, batch):
    method = cast.method(kind)
    hidden = cast.backbone(batch.x_t, batch.t, batch.y, taps=method.taps).hidden
    method(hidden, batch, cast.view).backward()
    moved = [any(p.grad is not None and p.grad.any() for p in block.parameters()) for block in cast.backbone.blocks]
    assert moved == [number <= DEEPEST[kind] for number in range(1, 7)]


@pytest.mark.parametrize(("kind", "needs_whole_batch"), [(kind, kind == "dispersive") for kind in METHODS])
def test_a_batch_is_the_mean_of_its_pieces_unless_the_method_compares_images(kind, needs_whole_batch, cast, batch):
    method = cast.method(kind)
    step = TrainingStep(cast.backbone, method)
    whole = step(batch, WEIGHT, cast.view).method
    pieces = torch.stack([step(piece, WEIGHT, cast.view).method for piece in split(batch, 2)]).mean()
    assert torch.allclose(pieces, whole, rtol=1e-4) != needs_whole_batch


# --- ranks --------------------------------------------------------------------------------------------------------

CASES = [(name, kind, {}) for name in BACKBONES for kind in METHODS]
CASES += [("SiT-T/2", "dispersive", {"variant": variant}) for variant in DISPERSIVE[1:]]


def loss_and_gradients(case, batch: Batch, distributed: bool) -> dict[str, Tensor]:
    name, kind, options = case
    cast = Cast(name)
    step = TrainingStep(cast.backbone, cast.method(kind, **options))
    replica = DistributedDataParallel(step, broadcast_buffers=False) if distributed else step
    losses = replica(batch, WEIGHT, cast.view)
    losses.total.backward()
    return {"loss": losses.total.detach()} | {name: parameter.grad for name, parameter in step.named_parameters()}


def _rank(rank: int, world_size: int, out: Path) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(out / "rendezvous"), world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    mine = split(make_batch(), 4 // world_size)[rank]
    torch.save([loss_and_gradients(case, mine, distributed=True) for case in CASES], out / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_compute_what_one_does_to_rounding(batch, tmp_path):
    mp.spawn(_rank, (2, tmp_path), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for case, one, other in zip(CASES, *ranks, strict=True):
        alone = loss_and_gradients(case, batch, distributed=False)
        torch.testing.assert_close((one.pop("loss") + other.pop("loss")) / 2, alone.pop("loss"), msg=str(case))
        for name, gradient in alone.items():
            assert torch.equal(one[name], other[name])
            tolerance = 1e-5 * gradient.abs().max().item()
            torch.testing.assert_close(one[name], gradient, rtol=1e-4, atol=tolerance, msg=f"{case}: {name}")


# --- self_guided, vae_align ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0])
def test_the_guided_feature_extrapolates_from_the_unconditional_one(scale, cast, batch):
    def feature(y: Tensor) -> Tensor:
        return cast.teacher.features(batch.x_t, batch.t, y, 4).detach()

    guided = guided_feature(cast.teacher, batch.x_t, batch.t, batch.labels, block=4, guidance_scale=scale)
    f_u, f_c = feature(torch.full((4,), 9)).double(), feature(batch.labels).double()
    torch.testing.assert_close(guided.double(), f_u + scale * (f_c - f_u), rtol=1e-4, atol=1e-4)


def test_the_guided_target_uses_the_true_label_where_the_student_s_is_dropped(cast, batch):
    method = cast.method("self_guided")
    hidden = cast.backbone(batch.x_t, batch.t, batch.y, taps=(3,)).hidden
    assert not torch.equal(method(hidden, batch), method(hidden, replace(batch, labels=batch.y)))


def test_latent_tokens_stand_in_the_order_of_the_backbone_s_own():
    latents = torch.arange(2 * 3 * 4 * 4, dtype=torch.float32).reshape(2, 3, 4, 4)
    tokens = patchify(latents, 2)
    assert tokens.shape == (2, 4, 12)
    # token 1 is the upper right patch; p, p, C with the channel last
    assert tokens[0, 1].tolist() == [latents[0, c, i, j].item() for i in (0, 1) for j in (2, 3) for c in range(3)]


# --- repa ---------------------------------------------------------------------------------------------------------


class Tokens:
    """An encoder that sees the same in every picture."""

    def __init__(self, tokens: Tensor):
        self.tokens, self.width = tokens, tokens.shape[-1]

    def __call__(self, images: Tensor) -> Tensor:
        return self.tokens


def test_repa_is_minus_the_cosine(cast, batch):
    state, target = normal(4, 16, 96), normal(4, 16, 12, seed=1)

    def loss(tokens: Tensor) -> Tensor:
        return cast.method("repa", encoder=Tokens(tokens))({2: state}, batch).detach()

    projected = cast.method("repa").projector(state).detach().double()
    cosine = (projected * target).sum(dim=-1) / (projected.norm(dim=-1) * target.double().norm(dim=-1))
    torch.testing.assert_close(loss(target).double(), -cosine.mean(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(loss(3 * projected), torch.tensor(-1.0))
    torch.testing.assert_close(loss(-projected), torch.tensor(1.0))


def test_repa_refuses_what_does_not_fit(cast, batch):
    hidden = {2: normal(4, 16, 96)}
    with pytest.raises(ValueError, match="the encoder gives 9 tokens, the backbone 16"):
        cast.method("repa", encoder=Tokens(normal(4, 9, 12)))(hidden, batch)
    with pytest.raises(ValueError, match="images"):
        cast.method("repa")(hidden, replace(batch, images=None))


# --- dispersive ---------------------------------------------------------------------------------------------------


def dispersive_in_full(h: Tensor, variant: str, temperature: float, margin: float) -> float:
    """The definition, pair by pair, in float64."""
    z = h.double().flatten(1)
    count, channels = z.shape
    if variant == "covariance":
        covariance = (z / math.sqrt(channels)).T.cov()
        return float(covariance.square().sum() - covariance.diagonal().square().sum())
    entries = []
    for a in z:
        for b in z:
            distance = float((a - b).square().sum()) / channels
            cosine = float(a @ b / (a.norm() * b.norm()))
            entries.append(
                {
                    "infonce_l2": math.exp(-distance / temperature),
                    "infonce_cosine": math.exp(cosine / temperature),
                    "hinge": max(0.0, margin - distance) ** 2,
                }[variant]
            )
    mean = sum(entries) / count**2
    return mean if variant == "hinge" else math.log(mean)


@pytest.mark.parametrize("offset", [0.0, 100.0], ids=["centred", "far from zero"])
@pytest.mark.parametrize("variant", DISPERSIVE)
def test_dispersive_is_its_definition_over_all_pairs(variant, offset, cast, batch):
    h = normal(5, 4, 6) + offset
    method = cast.method("dispersive", variant=variant, temperature=0.7, margin=2.2)
    expected = dispersive_in_full(h, variant, temperature=0.7, margin=2.2)
    assert float(method({6: h}, batch)) == pytest.approx(expected, rel=2e-4)
    with torch.autocast("cpu", torch.bfloat16):
        assert float(method({6: h}, batch)) == pytest.approx(expected, rel=2e-4)


@pytest.mark.parametrize("variant", DISPERSIVE)
def test_dispersive_is_finite_where_images_coincide_and_where_they_are_worlds_apart(variant, cast, batch):
    for h in (torch.ones(3, 4, 6), 1e4 * normal(3, 4, 6)):
        h = h.clone().requires_grad_()
        loss = cast.method("dispersive", variant=variant)({6: h}, batch)
        loss.backward()
        assert loss.isfinite() and h.grad.isfinite().all()
    loss = cast.method("dispersive")({6: 1e4 * normal(3, 4, 6)}, batch)
    torch.testing.assert_close(loss, torch.tensor(math.log(1 / 3)))  # each image near itself alone


# --- layersync ----------------------------------------------------------------------------------------------------


def test_layersync_sums_its_pairs(cast, batch):
    hidden = {block: normal(4, 16, 96, seed=block) for block in (2, 3, 4, 5)}
    expected = sum(
        -F.cosine_similarity(hidden[n].double(), hidden[m].double(), dim=-1).mean() for m, n in ((5, 2), (4, 3))
    )
    torch.testing.assert_close(cast.method("layersync")(hidden, batch).double(), expected, rtol=1e-5, atol=1e-7)
    same = {block: hidden[2] for block in hidden}
    torch.testing.assert_close(cast.method("layersync")(same, batch), torch.tensor(-2.0))


def test_layersync_moves_only_the_shallow_block(cast, batch):
    hidden = {block: normal(4, 16, 96, seed=block).requires_grad_() for block in (2, 5)}
    cast.method("layersync", layers=[(5, 2)])(hidden, batch).backward()
    assert hidden[2].grad.any() and hidden[5].grad is None


@pytest.mark.parametrize("layers", [(), ((3, 3),)])
def test_layersync_refuses_pairs_that_are_none(layers, cast):
    with pytest.raises(ValueError, match="pairs of two different blocks"):
        cast.method("layersync", layers=layers)


# --- sra ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["linear", "cosine"])
@pytest.mark.parametrize("distance", ["smooth_l1", "l1", "l2", "cosine"])
def test_sra_looks_at_the_average_nearer_to_the_data(distance, path, cast, batch):
    batch = replace(batch, t=torch.tensor([0.9, 0.5, 0.1, 0.0]), offset=torch.tensor([0.0, 0.5, 0.9, 0.3]))
    t = torch.tensor([0.9, 0.4, 0.0, 0.0])  # t - 0.2 u, and never below 0
    x_t, _ = interpolate(batch.latents, batch.noise, t, path=path)
    target = cast.average.features(x_t, t, batch.y, 5).detach().double()
    method, state = cast.method("sra", distance=distance), normal(4, 16, 96)
    predicted = method.head(state).detach().double()
    error = (predicted - target).abs()
    expected = {
        "smooth_l1": torch.where(error < 0.05, error**2 / 0.1, error - 0.025).mean(),
        "l1": error.mean(),
        "l2": error.square().mean(),
        "cosine": -F.cosine_similarity(predicted, target, dim=-1).mean(),
    }[distance]
    loss = method({3: state}, batch, View(cast.average, path)).double()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-6)


def test_sra_needs_a_view(cast, batch):
    with pytest.raises(ValueError, match="needs the EMA network"):
        cast.method("sra")({3: normal(4, 16, 96)}, batch)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="vae_align"):
        methods.create("vae")
