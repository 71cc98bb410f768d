"""For every field of every spec: whether changing it changes the history key. New fields must be listed here."""

import json

import pytest

from raysweep.space import launch, runs, space
from raysweep.space.schedulers import Asha, Hyperband, Median, Never, Promotion
from raysweep.store import history
from trainables import config
from trainables.config.base import Spec
from trainables.datasets import catalog

MOVES, STAYS = True, False

# The trial in which a field is changed, by method: a method's fields are changed in a trial of that method.
METHODS = {
    "none": {},
    "vae_align": {"stop": 100_000},
    "repa": {"stop": 100_000},
    "dispersive": {"stop": 100_000},
    "layersync": {"stop": 100_000},
    "sra": {"stop": 100_000},
    "self_guided": {"stop": 100_000, "teacher": {"method": "vae_align", "iterations": 200_000}},
}
STOP, WEIGHT = (200_000, MOVES), (0.125, MOVES)
KIND = ("none", MOVES)

RULES = {
    "eta": (4, STAYS),
    "noise": ("paired", STAYS),
    "level": (0.9, STAYS),
    "larger": (2, STAYS),
    "startup_trials": (1, STAYS),
}

# For each spec of a search space: its path, the method of the trial, and its fields, each with another value and
# whether that moves the key.
FIELDS = {
    config.Trial: (
        "trial",
        "self_guided",
        {
            "backbone": ("SiT-T24/2", MOVES),
            "data": ("imagenet256", MOVES),
            "batch_size": (16, MOVES),
            "seed": (1, MOVES),
            "precision": ("bf16", MOVES),
            "optimizer": ({"lr": 3e-4}, MOVES),
            "ema_decay": (0.99, MOVES),
            "label_dropout": (0.2, MOVES),
            "time": ("log_normal", MOVES),
            "path": ("cosine", MOVES),
            "velocity_cosine": (1.0, MOVES),
            "horizontal_flip": (True, MOVES),
            "iterations": (800_000, STAYS),  # a longer run passes through a shorter one's checkpoints
            "projector_width": (16, MOVES),
            "encoder": ({"kind": "dinov2"}, STAYS),  # matters for repa only: see below
            "method": ("none", MOVES),
        },
    ),
    config.OptimizerSpec: (
        "trial.optimizer",
        "none",
        {
            "lr": (3e-4, MOVES),
            "beta1": (0.8, MOVES),
            "beta2": (0.95, MOVES),
            "eps": (1e-6, MOVES),
            "weight_decay": (0.1, MOVES),
            "grad_clip": (None, MOVES),
        },
    ),
    # The key depends on the encoder's weights, not on their path; test_history.py checks both.
    config.EncoderSpec: ("trial.encoder", "repa", {"kind": ("dinov2", MOVES), "path": ("elsewhere", STAYS)}),
    config.NoMethod: ("trial.method", "none", {"kind": ("vae_align", MOVES)}),
    config.VaeAlign: (
        "trial.method",
        "vae_align",
        {"kind": KIND, "stop": STOP, "weight": WEIGHT, "block": (5, MOVES)},
    ),
    config.Repa: ("trial.method", "repa", {"kind": KIND, "stop": STOP, "weight": WEIGHT, "block": (5, MOVES)}),
    config.Dispersive: (
        "trial.method",
        "dispersive",
        {
            "kind": KIND,
            "stop": STOP,
            "weight": WEIGHT,
            "block": (5, MOVES),
            "variant": ("hinge", MOVES),
            "temperature": (0.5, MOVES),
            "margin": (0.5, MOVES),
        },
    ),
    config.LayerSync: (
        "trial.method",
        "layersync",
        {"kind": KIND, "stop": STOP, "weight": WEIGHT, "layers": ([[10, 5]], MOVES)},
    ),
    config.Sra: (
        "trial.method",
        "sra",
        {
            "kind": KIND,
            "stop": STOP,
            "weight": WEIGHT,
            "layers": ([10, 5], MOVES),
            "t_offset": (0.1, MOVES),
            "distance": ("l1", MOVES),
        },
    ),
    config.SelfGuided: (
        "trial.method",
        "self_guided",
        {
            "kind": KIND,
            "stop": STOP,
            "weight": WEIGHT,
            "layers": ([8, 4], MOVES),
            "guidance_scale": (15.0, MOVES),
            "target_norm": ("layer", MOVES),
            "teacher": ({"method": "none"}, MOVES),
        },
    ),
    config.TeacherSpec: (
        "trial.method.teacher",
        "self_guided",
        {
            "method": ("layersync", MOVES),
            "iterations": (100_000, MOVES),
            "weights": ("raw", MOVES),
            "precision": ("bf16", MOVES),
        },
    ),
    config.Schedule: (
        "trial.method.weight",
        "vae_align",
        {"steps": ([0, 200_000], MOVES), "weights": ([1.0, 0.5], MOVES), "curve": ("geometric", MOVES)},
    ),
    space.Search: (
        "search",
        "none",
        {
            "mode": ("reproduce", STAYS),
            "trials": (3, STAYS),
            "seed": (5, STAYS),
            "rungs": ([150_000], STAYS),
            "scheduler": ("median", STAYS),
            "sampler": ("qmc", STAYS),
            "second_objective": ("steps", STAYS),
            "startup_trials": (1, STAYS),
        },
    ),
    **{
        kind: (
            "search.scheduler",
            "none",
            {"kind": ("never", STAYS), **{name: value for name, value in RULES.items() if name in kind.model_fields}},
        )
        for kind in (Asha, Hyperband, Median, Never, Promotion)
    },
    launch.Launch: (
        "launch",
        "none",
        {
            "workers": (1, STAYS),
            "lanes": (2, STAYS),
            "cpus_per_worker": (0.5, STAYS),
            "gpus_per_worker": (1, STAYS),
            "concurrent_trials": (2, STAYS),
            "micro_batch": (2, STAYS),
            "cohort": (2, STAYS),
            "compile": (True, STAYS),
            "checkpoint_blocks": (True, STAYS),
            "hold_data": (True, STAYS),
            "checkpoint_every_s": (60, STAYS),
            "timeout_s": (60, STAYS),
            "grace_s": (5, STAYS),
            "start_timeout_s": (60, STAYS),
            "placement_strategy": ("SPREAD", STAYS),
        },
    ),
    space.Probe: (
        "probe",
        "none",
        {
            "detector": ("effnet_lite0", STAYS),
            "resize": ("clean", STAYS),
            "detector_weights": ("elsewhere", STAYS),
            "detector_sha256": ("0123abcd", STAYS),
            "reference": ("elsewhere", STAYS),
            "reference_sha256": ("0123abcd", STAYS),
            "metrics": (["kid"], STAYS),
            "samples": (99, STAYS),
            "sampler": ("heun", STAYS),
            "steps": (3, STAYS),
            "timestep_shift": (0.5, STAYS),
            "guidance_scale": (2.0, STAYS),
            "guidance_interval": ([0.2, 0.8], STAYS),
            "batch_size": (7, STAYS),
            "seed": (3, STAYS),
            "families": ({"SiT": {"steps": 9}}, STAYS),
        },
    ),
    space.Sampling: (
        "probe.families.SiT",
        "none",
        {
            "sampler": ("heun", STAYS),
            "steps": (3, STAYS),
            "timestep_shift": (0.5, STAYS),
            "guidance_scale": (2.0, STAYS),
            "guidance_interval": ([0.2, 0.8], STAYS),
        },
    ),
    space.Row: (
        "enqueue.0",
        "none",
        {name: (1.0, STAYS) for name in ("fid", "is", "sfid", "precision", "recall")} | {"set": ({}, STAYS)},
    ),
    space.SpaceFile: (
        "",
        "none",
        {
            "study": ("other", STAYS),
            "trial": ({"method": "vae_align"}, MOVES),
            "search": ({"trials": 3}, STAYS),
            "probe": ({"samples": 99}, STAYS),
            "launch": ({"lanes": 2}, STAYS),
            "enqueue": ([], STAYS),
            "steps_divisor": (25_000, STAYS),  # as with `iterations`: twice as many steps of the same run
            "published_samples": (99, STAYS),
        },
    ),
}
# The specs of runs. A method's term has the method's fields without these, which decide about phases and teachers.
IN_PHASES = {"stop", "teacher"}
OF_RUNS = {
    config.Recipe: set(config.Trial.model_fields) - {"iterations", "projector_width", "encoder", "method"},
    config.Run: {*config.Recipe.model_fields, "phases"},
    config.Phase: {"until", "term", "projector_width", "encoder", "teacher"},
    config.TeacherRef: {"run", "step", "weights", "precision"},
    config.ProbeSpec: set(space.Probe.model_fields) - {"families"},
}
CASES = [(kind, name) for kind, (_, _, fields) in FIELDS.items() for name in fields]


def descendants(kind: type) -> set[type]:
    return {kind} | {below for child in kind.__subclasses__() for below in descendants(child)}


def test_every_field_of_every_spec_is_listed():
    terms = {method: method.__mro__[1] for method, (where, _, _) in FIELDS.items() if where == "trial.method"}
    listed = {kind: {field(kind, name) for name in names} for kind, (_, _, names) in FIELDS.items()}
    listed |= {term: listed[method] - IN_PHASES for method, term in terms.items()} | OF_RUNS
    concrete = {kind for kind in descendants(Spec) if kind.model_fields and not abstract(kind)}
    assert concrete == set(listed)
    assert {kind: set(kind.model_fields) for kind in concrete} == listed
    assert set(METHODS) == {kind.model_fields["kind"].default for kind in terms}


def abstract(kind: type) -> bool:
    return kind.__name__.startswith("_")


def field(kind: type, name: str) -> str:
    return "is_" if kind is space.Row and name == "is" else name


def run_of(write_space, method: str, changes: dict[str, object]) -> config.Run:
    own = {"kind": method, **METHODS[method]}
    text = json.dumps({"study": "fields", "trial": {"iterations": 400_000, "method": own}, "enqueue": [{"set": {}}]})
    overrides = [f"{path}={json.dumps(value)}" for path, value in changes.items()]
    loaded = space.load(write_space(text), "smoke", overrides)
    return runs.student(loaded, loaded.trial({})[0])


@pytest.mark.parametrize(("kind", "name"), CASES, ids=lambda case: case if isinstance(case, str) else case.__name__)
def test_a_field_moves_the_key_where_it_is_said_to(write_space, monkeypatch, kind, name):
    monkeypatch.setattr(catalog, "identity", lambda data: data)
    monkeypatch.setattr(catalog, "encoder_identity", lambda kind, path: kind)  # by its weights, not by their path
    where, method, fields = FIELDS[kind]
    value, moves = fields[name]
    base = {"trial.encoder.kind": "effnet_lite0"}
    if kind is config.Schedule:
        base |= {"trial.method.weight": {"steps": [0, 100_000], "weights": [0.5, 0.1]}}
    if kind in (space.Probe, space.Sampling):
        base |= {"probe.sampler": "euler", "probe.detector": "inception"}
    if where == "search.scheduler" and name != "kind":
        base |= {"search.scheduler.kind": kind.model_fields["kind"].default}
    if name == "reference_sha256":
        base |= {"probe.reference": "elsewhere"}
    changes = {f"{where}.{name}" if where else name: value}
    if kind is space.Row:
        changes = {"enqueue": [{"set": {}, name: value}]}
    if name == "kind" and where == "trial.method" or name == "method":
        changes = {("trial.method" if where != "trial.method.teacher" else f"{where}.method"): value}
    before, after = run_of(write_space, method, base), run_of(write_space, method, base | changes)
    step = min(before.steps, after.steps)
    assert (history.key(before, step) != history.key(after, step)) == moves
