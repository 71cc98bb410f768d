"""The laws of the training loop: same history, same bits; a method of weight 0 leaves no trace; ranks only round."""

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

import trainables.training.loop as training
from trainables.config import (
    DispersiveTerm,
    EncoderSpec,
    LayerSyncTerm,
    NoTerm,
    Phase,
    RepaTerm,
    Run,
    Schedule,
    SelfGuidedTerm,
    SraTerm,
    TeacherRef,
    VaeAlignTerm,
)
from trainables.datasets.latent_set import load_latents
from trainables.draws import draw
from trainables.methods import Batch, Guide
from trainables.methods.self_guided import extrapolate, guided_feature
from trainables.training import ema
from trainables.training.checkpoint import Checkpoint
from trainables.training.loop import (
    Context,
    NonFiniteLoss,
    Outcome,
    build_backbone,
    load_backbone,
    train,
    train_together,
)

# AdamW makes a step of up to `lr`, 1e-3, of a gradient that vanishes but for rounding; so less than one such step.
ROUNDING = {"rtol": 1e-3, "atol": 5e-4}
BASE = {"backbone": "SiT-T/2", "data": "emoji9", "batch_size": 4, "ema_decay": 0.9, "optimizer": {"lr": 1e-3}}
STEPS = 6
TEACHER = TeacherRef(run=Run(**BASE, phases=[Phase(until=STEPS, term=VaeAlignTerm(), projector_width=8)]), step=3)


def run(*phases: Phase, **changes) -> Run:
    return Run(**{**BASE, **changes}, phases=phases)


def plain(until: int = STEPS) -> Phase:
    return Phase(until=until, term=NoTerm())


def aligned(until: int = STEPS) -> Phase:
    return Phase(until=until, term=VaeAlignTerm(), projector_width=8)


def guided(until: int = STEPS, **options) -> Phase:
    return Phase(until=until, term=SelfGuidedTerm(layers=(8, 6), **options), projector_width=8, teacher=TEACHER)


@pytest.fixture(scope="module")
def data(cache: Path):
    return load_latents("emoji9", cache, mirrored=True, images=True)


@pytest.fixture(scope="module")
def teacher(data):
    """A teacher whose output layers are no longer zero, so that its guidance means something."""
    trained = train(TEACHER.run, TEACHER.step, data=data, context=Context()).checkpoint
    return load_backbone(TEACHER.run, data, trained.ema, torch.device("cpu"))


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


RUNS = {
    "none": run(plain()),
    "vae_align": run(aligned()),
    "vae_align, stopped": run(aligned(2), plain()),
    "self_guided": run(guided()),
    "self_guided, stopped": run(guided(4), plain()),
    "log-normal times, cosine path": run(plain(), time="log_normal", path="cosine"),
    "bf16": run(aligned(), precision="bf16"),
    "repa": run(Phase(until=STEPS, term=RepaTerm(), projector_width=8, encoder=EncoderSpec(kind="effnet_lite0"))),
    "dispersive": run(Phase(until=STEPS, term=DispersiveTerm())),
    "layersync": run(Phase(until=STEPS, term=LayerSyncTerm(layers=[[8, 4], [12, 6]]))),
    "sra, its weight scheduled": run(
        Phase(until=STEPS, term=SraTerm(weight=Schedule(steps=(1, 5), weights=(1.0, 0.1), curve="geometric")))
    ),
    "LightningDiT": run(
        aligned(),
        backbone="LightningDiT-T/2",
        time="log_normal",
        velocity_cosine=1.0,
        horizontal_flip=True,
    ),
}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("stop", [2, 5])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(name, stop, data, teacher, tmp_path):
    def go(until: int, start: Checkpoint | None = None) -> Checkpoint:
        torch.manual_seed(torch.randint(1000, ()).item())  # the global generator must not matter
        return train(RUNS[name], until, data=data, context=Context(), start=start, teacher=lambda _: teacher).checkpoint

    whole = go(STEPS)
    go(stop).save(tmp_path)
    resumed = go(STEPS, Checkpoint.load(tmp_path, stop))
    for part in ("backbone", "ema", "method", "optimizer"):
        assert same(getattr(resumed, part), getattr(whole, part)), part


@pytest.mark.parametrize("name", ["none", "self_guided", "repa", "layersync", "LightningDiT"])
def test_pieces_of_a_batch_train_what_the_whole_does_to_rounding(name, data, teacher):
    options = {"data": data, "teacher": lambda _: teacher}
    whole = train(RUNS[name], STEPS, context=Context(), **options).checkpoint
    for pieces in (1, 3):  # of 4 images: four pieces, and one of three with one of one
        parts = train(RUNS[name], STEPS, context=Context(micro_batch=pieces), **options).checkpoint
        for key, tensor in whole.ema.items():
            torch.testing.assert_close(parts.ema[key], tensor, **ROUNDING, msg=key)


def test_a_loss_over_the_whole_batch_refuses_pieces(data):
    with pytest.raises(ValueError, match="whole batch"):
        train(RUNS["dispersive"], STEPS, data=data, context=Context(micro_batch=2))


def test_activations_computed_again_change_no_bit(data, teacher):
    options = {"data": data, "teacher": lambda _: teacher}
    kept = train(RUNS["self_guided"], STEPS, context=Context(), **options).checkpoint
    again = train(RUNS["self_guided"], STEPS, context=Context(checkpoint_blocks=True), **options).checkpoint
    assert same(kept.backbone, again.backbone) and same(kept.ema, again.ema)


@pytest.mark.parametrize("grad_clip", [1.0, 0.01, None])
@pytest.mark.parametrize(
    "phase", [guided(weight=0.0), Phase(until=STEPS, term=VaeAlignTerm(weight=0.0), projector_width=8)]
)
def test_a_method_of_weight_zero_leaves_plain_sit_bit_for_bit(phase, grad_clip, data, teacher):
    optimizer = {"lr": 1e-3, "grad_clip": grad_clip}
    options = {"data": data, "context": Context(), "teacher": lambda _: teacher}
    with_method = train(run(phase, optimizer=optimizer), STEPS, **options).checkpoint
    without = train(run(plain(), optimizer=optimizer), STEPS, **options).checkpoint
    assert same(with_method.backbone, without.backbone) and same(with_method.ema, without.ema)


def test_a_weight_that_is_not_zero_does_something(data, teacher):
    options = {"data": data, "context": Context(), "teacher": lambda _: teacher}
    one, other = (train(run(phase), STEPS, **options).checkpoint for phase in (guided(), plain()))
    assert not same(one.backbone, other.backbone)


@pytest.mark.parametrize(("scale", "branch"), [(0.0, "unconditional"), (1.0, "conditional")])
def test_the_guided_feature_is_exact_at_scales_0_and_1(scale, branch, data, teacher):
    x, t, y = torch.randn(3, 8, 8, 8), torch.rand(3), torch.tensor([0, 4, 8])
    feature = guided_feature(teacher, x, t, y, block=8, guidance_scale=scale)
    null = torch.full_like(y, data.num_classes)
    both = teacher.states(x, t, torch.cat([y, null]), (8,))[8]
    conditional, unconditional = both.chunk(2)
    assert torch.equal(feature, conditional if branch == "conditional" else unconditional)
    assert not torch.equal(conditional, unconditional)
    thirty = guided_feature(teacher, x, t, y, block=8, guidance_scale=30.0)
    torch.testing.assert_close(thirty, unconditional + 30 * (conditional - unconditional), rtol=1e-4, atol=1e-4)


def test_a_teacher_is_not_touched_nor_kept(data, teacher):
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    checkpoint = train(run(guided()), STEPS, data=data, context=Context(), teacher=lambda _: teacher).checkpoint
    assert same(before, teacher.state_dict())
    assert not any("teacher" in name for part in (checkpoint.method, checkpoint.optimizer) for name in part)
    assert checkpoint.backbone.keys() == build_backbone(run(plain()), data).state_dict().keys()


def test_a_stopped_method_takes_its_projector_along_no_further(data):
    stopped = train(run(aligned(2), plain()), STEPS, data=data, context=Context()).checkpoint
    assert stopped.method == {} and not any("method" in name for name in stopped.optimizer)


def test_a_loss_that_is_not_finite_is_an_error_that_says_where(data):
    with pytest.raises(NonFiniteLoss, match="step") as caught:
        train(run(plain(), optimizer={"lr": 1e30, "grad_clip": None}), STEPS, data=data, context=Context())
    error, names = caught.value, {"loss", "loss_diffusion", "loss_method", "grad_norm"}
    assert 1 < error.step <= STEPS and error.terms.keys() == error.before.keys() == names
    assert not all(map(math.isfinite, error.terms.values())) and all(map(math.isfinite, error.before.values()))


def test_a_loss_that_is_not_finite_is_noticed_long_before_the_end(data, monkeypatch):
    monkeypatch.setattr(training, "CHECK_EVERY", 2)
    seen: list[int] = []
    wild = run(plain(30), optimizer={"lr": 1e30, "grad_clip": None})
    with pytest.raises(NonFiniteLoss) as caught:
        train(wild, 30, data=data, context=Context(progress=seen.append))
    assert caught.value.step <= seen[-1] <= caught.value.step + 2


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_training_that_is_told_to_stop_can_go_on_as_if_it_had_not(stop, data, teacher, tmp_path):
    options = {"data": data, "teacher": lambda _: teacher}
    phases = run(guided(4), plain())
    whole = train(phases, STEPS, context=Context(), **options).checkpoint
    stopped = train(phases, STEPS, context=Context(should_stop=lambda step: step == stop), **options)
    assert stopped.checkpoint.step == stop == stopped.curve[-1]["step"]
    stopped.checkpoint.save(tmp_path)
    rest = train(phases, STEPS, context=Context(), start=Checkpoint.load(tmp_path, stop), **options).checkpoint
    assert same(rest.backbone, whole.backbone) and same(rest.optimizer, whole.optimizer) and same(rest.ema, whole.ema)


COHORT = {
    "scale": guided(),
    "another scale": guided(guidance_scale=5.0),
    "a deeper block": Phase(until=STEPS, term=SelfGuidedTerm(layers=(10, 4)), projector_width=8, teacher=TEACHER),
    "layer-normed": guided(target_norm="layer", weight=0.1),
}


class Counted:
    """A teacher that counts how often it is looked at."""

    def __init__(self, teacher):
        self.width, self.num_classes, self._teacher, self.looks = teacher.width, teacher.num_classes, teacher, 0

    def states(self, *arguments):
        self.looks += 1
        return self._teacher.states(*arguments)


@pytest.mark.parametrize("changes", [{}, {"precision": "bf16"}], ids=["fp32", "bf16"])
@pytest.mark.parametrize("micro_batch", [None, 3])
def test_students_in_lockstep_get_the_bits_that_each_would_get_alone(changes, micro_batch, data, teacher):
    runs = [run(phase, **changes) for phase in COHORT.values()]
    runs += [run(guided(3), plain(), **changes), run(plain(), **changes)]  # one stops on the way, one is not guided
    counted, context = Counted(teacher), Context(micro_batch=micro_batch)
    nothing = [None] * len(runs)
    together = train_together(runs, STEPS, data=data, context=context, starts=nothing, teacher=lambda _: counted)
    assert counted.looks == STEPS * (2 if micro_batch else 1)
    for member, outcome in zip(runs, together, strict=True):
        alone = train(member, STEPS, data=data, context=context, teacher=lambda _: teacher)
        assert outcome.run is member and outcome.checkpoint.step == STEPS
        for part in ("backbone", "ema", "method", "optimizer"):
            assert same(getattr(outcome.checkpoint, part), getattr(alone.checkpoint, part)), part
        assert [point["loss"] for point in outcome.curve] == [point["loss"] for point in alone.curve]


def test_a_cohort_goes_on_from_checkpoints(data, teacher, tmp_path):
    runs = [run(phase) for phase in COHORT.values()]
    options = {"data": data, "context": Context(), "teacher": lambda _: teacher}
    whole = train_together(runs, STEPS, starts=[None] * 4, **options)
    half = train_together(runs, 3, starts=[None] * 4, **options)
    rest = train_together(runs, STEPS, starts=[outcome.checkpoint.copied() for outcome in half], **options)
    for one, other in zip(whole, rest, strict=True):
        assert same(one.checkpoint.backbone, other.checkpoint.backbone)
        assert same(one.checkpoint.optimizer, other.checkpoint.optimizer)


def test_one_that_is_not_finite_leaves_the_others_alone(data, teacher, monkeypatch):
    monkeypatch.setattr(training, "CHECK_EVERY", 2)
    options = {"data": data, "context": Context(), "teacher": lambda _: teacher}
    wild = run(guided(), optimizer={"lr": 1e30, "grad_clip": None})
    first, error, last = train_together([run(guided()), wild, run(plain())], STEPS, starts=[None] * 3, **options)
    assert isinstance(error, NonFiniteLoss) and isinstance(first, Outcome) and isinstance(last, Outcome)
    assert same(first.checkpoint.backbone, train(run(guided()), STEPS, **options).checkpoint.backbone)
    assert same(last.checkpoint.backbone, train(run(plain()), STEPS, **options).checkpoint.backbone)


@pytest.mark.parametrize("changes", [{"seed": 1}, {"batch_size": 2}, {"time": "log_normal"}, {"horizontal_flip": True}])
def test_runs_with_other_batches_are_not_trained_together(changes, data):
    with pytest.raises(ValueError, match="batch_size"):
        train_together([run(plain()), run(plain(), **changes)], 2, data=data, context=Context(), starts=[None, None])


def test_runs_from_different_steps_are_not_trained_together(data):
    begun = train(run(plain()), 2, data=data, context=Context()).checkpoint
    with pytest.raises(ValueError, match="same step"):
        train_together([run(plain()), run(plain())], 4, data=data, context=Context(), starts=[None, begun])


@pytest.mark.parametrize("first", [2, 4])
def test_training_continues_from_intermediate_checkpoints(first, data, teacher):
    phases, kept = run(guided(4), plain()), []
    options = {"data": data, "teacher": lambda _: teacher}

    def keep(outcomes: list[Outcome]) -> None:
        kept.extend((outcome.checkpoint.copied(), outcome.curve) for outcome in outcomes)

    context = Context(should_checkpoint=lambda step: step in (first, 5), on_checkpoint=keep)
    whole, end = train(phases, STEPS, context=Context(), **options), train(phases, STEPS, context=context, **options)
    assert same(end.checkpoint.backbone, whole.checkpoint.backbone)
    # `on_checkpoint` is not called at the last step of a phase, which is step 4 here.
    steps = [step for step in (first, 5) if step != 4]
    assert [checkpoint.step for checkpoint, _ in kept] == steps
    curves = [point for _, curve in kept for point in curve] + end.curve
    assert [point["step"] for point in curves] == list(range(1, STEPS + 1))
    for checkpoint, _ in kept:
        rest = train(phases, STEPS, context=Context(), start=checkpoint, **options).checkpoint
        assert same(rest.backbone, whole.checkpoint.backbone) and same(rest.optimizer, whole.checkpoint.optimizer)


# Matrix products round what goes in to 2^-9 of its size (fp16: 2^-12; fp32: here not at all), states in between stay
# whole: each branch is held to one such rounding of its own size, and f_g weighs the branches by 30 and 29.
@pytest.mark.parametrize(("precision", "rounding"), [("fp32", 2**-24), ("bf16", 2**-9), ("fp16", 2**-12)])
def test_a_rounded_teacher_guides_to_within_its_rounding(precision, rounding, data, teacher):
    x, t, y = torch.randn(16, 8, 8, 8), torch.rand(16), torch.arange(16) % 9
    batch = Batch(x, x, x, x, t, y, y, t)
    exact = guided_feature(teacher, x, t, y, block=8, guidance_scale=30.0)
    guide = Guide(teacher, precision)
    guide.expect(8)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "fp32"):  # whatever the student's is
        looks = guide(batch, 8)
    off = (extrapolate(looks, 30.0) - exact).norm()
    assert off <= (30 + 29) * rounding * looks.unconditional.norm()
    assert precision == "fp32" or off > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["self_guided", "bf16"])
def test_compiled_blocks_train_to_rounding_and_resume_to_the_bit(name, data, teacher):
    options = {"data": data, "teacher": lambda _: teacher}
    plainly = train(RUNS[name], STEPS, context=Context(), **options)
    compiled = train(RUNS[name], STEPS, context=Context(compile=True), **options)
    for one, other in zip(plainly.curve, compiled.curve, strict=True):
        # Rounding of one product for fp32; of bf16's for bf16, whose fused operations round less often.
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5 if name == "self_guided" else 1e-2)
    for key, tensor in plainly.checkpoint.ema.items():
        bound = ROUNDING if name == "self_guided" else {"rtol": 1e-2, "atol": 5e-3}
        torch.testing.assert_close(compiled.checkpoint.ema[key], tensor, **bound, msg=key)
    half = train(RUNS[name], 3, context=Context(compile=True), **options).checkpoint.copied()
    rest = train(RUNS[name], STEPS, context=Context(compile=True), start=half, **options).checkpoint
    assert same(rest.backbone, compiled.checkpoint.backbone) and same(rest.ema, compiled.checkpoint.ema)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9999])
def test_the_average_is_decay_times_itself_and_the_rest_of_the_value(decay):
    averages, values = ([torch.randn(5, 3), torch.randn(7)] for _ in range(2))
    expected = [decay * a.double() + (1 - decay) * v.double() for a, v in zip(averages, values, strict=True)]
    ema.update(averages, values, decay)
    for average, exact in zip(averages, expected, strict=True):
        torch.testing.assert_close(average, exact.float(), rtol=2**-22, atol=2**-22)


def test_no_room_for_a_checkpoint_is_an_error_of_the_system_s(data, tmp_path):
    outcome = train(run(plain()), 1, data=data, context=Context())
    with pytest.raises(OSError):
        outcome.checkpoint.save(tmp_path / "missing")


def _rank(rank: int, world_size: int, cache: Path, phases: tuple[Phase, ...], teacher_weights, out: Path) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(out / "rendezvous"), world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    data = load_latents("emoji9", cache)
    teacher = load_backbone(TEACHER.run, data, teacher_weights, torch.device("cpu"))
    context = Context(rank=rank, world_size=world_size)
    outcome = train(run(*phases), STEPS, data=data, context=context, teacher=lambda _: teacher)
    (out / str(rank)).mkdir()
    outcome.checkpoint.save(out / str(rank))
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("phases", "count"),
    [((aligned(),), 2), ((guided(4), plain()), 2), ((guided(4), plain()), 3)],  # among 3, a batch of 4 goes unevenly
    ids=["vae_align", "self_guided, stopped", "uneven shares"],
)
def test_ranks_train_what_one_does_to_rounding(phases, count, data, teacher, cache, tmp_path):
    mp.spawn(_rank, (count, cache, phases, teacher.state_dict(), tmp_path), nprocs=count)
    ranks = [Checkpoint.load(tmp_path / str(rank), STEPS) for rank in range(count)]
    for other in ranks[1:]:
        assert same(ranks[0].backbone, other.backbone) and same(ranks[0].ema, other.ema)
    alone = train(run(*phases), STEPS, data=data, context=Context(), teacher=lambda _: teacher).checkpoint
    for name, tensor in alone.ema.items():
        torch.testing.assert_close(ranks[0].ema[name], tensor, **ROUNDING, msg=name)


def test_draws_are_the_global_batch_s_whatever_the_ranks():
    options = {"batch_size": 12, "num_images": 50, "latent_shape": (2, 4, 4)}
    for step in (0, 3, 4, 1000):  # a batch across the end of an epoch, and one far on
        whole = draw(7, step, **options)
        for ranks in (3, 5, 12):
            parts = [draw(7, step, **options, rank=rank, world_size=ranks) for rank in range(ranks)]
            for name in whole._fields:
                assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
            shares = [len(part.indices) for part in parts]
            assert max(shares) - min(shares) <= 1
    with pytest.raises(ValueError, match="too small"):
        draw(7, 0, **options, world_size=13)


def test_an_epoch_shows_every_image_once():
    seen = torch.cat([draw(1, step, batch_size=5, num_images=20, latent_shape=(1,)).indices for step in range(8)])
    assert sorted(seen[:20].tolist()) == sorted(seen[20:].tolist()) == list(range(20))
    assert seen[:20].tolist() != seen[20:].tolist()
