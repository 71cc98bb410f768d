"""A key names what determines the weights: all of it, and nothing else."""

from pathlib import Path

import pytest

from raysweep.space import runs, space
from raysweep.store import history
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

ROOT = Path(__file__).parents[2]
PINNED = {  # of all rows' ends, in the file's order: moves only with a new numerics version or a wider history
    ("table1", "laptop"): "077c838cf7cd65aa",
    ("table2", "laptop"): "0c01f9f797952778",
    ("table3", "laptop"): "ba4680c6556802b4",
    ("table4", "laptop"): "7dd87f6c3b752413",
    ("table5", "laptop"): "5e8b50f6c7c8c421",
    ("table5", "smoke"): "43adfd356c568300",
    ("figure8", "laptop"): "68151aa659cf7fba",
}
BASE = {"backbone": "SiT-T/2", "data": "emoji9", "batch_size": 4}


def guided(stop: int, end: int = 40, **options) -> Run:
    teacher = TeacherRef(
        run=Run(**BASE, phases=[Phase(until=40, term=VaeAlignTerm(block=6), projector_width=8)]), step=20
    )
    phases = [
        Phase(until=stop, term=SelfGuidedTerm(layers=(8, 6), **options), projector_width=8, teacher=teacher),
        *([Phase(until=end, term=NoTerm())] if stop < end else []),
    ]
    return Run(**BASE, phases=phases)


def keys_of_all_rows(name: str, profile: str) -> str:
    sizes = ["steps_divisor=2000"] if profile == "laptop" else []  # as they were pinned
    loaded = space.load(ROOT / "search_spaces" / f"{name}.yaml", profile, sizes)
    students = [runs.student(loaded, loaded.trial(row.set)[0]) for row in loaded.rows]
    return history.key_of([history.key(run, run.steps) for run in students])[:16]


@pytest.mark.parametrize(("name", "profile"), PINNED)
def test_keys_of_the_committed_search_spaces_stay(name: str, profile: str):
    assert keys_of_all_rows(name, profile) == PINNED[name, profile]


def test_every_committed_search_space_is_pinned():
    assert {name for name, _ in PINNED} == {path.stem for path in (ROOT / "search_spaces").glob("*.yaml")}


def test_runs_share_every_step_up_to_the_earlier_stop():
    early, late = guided(stop=10), guided(stop=30)
    assert history.key(early, 10) == history.key(late, 10)
    assert history.key(early, 5) == history.key(late, 5)
    assert history.key(early, 11) != history.key(late, 11)


def test_a_longer_run_contains_a_shorter_one():
    assert history.key(guided(10, end=40), 40) == history.key(guided(10, end=80), 40)


@pytest.mark.parametrize(
    "change",
    [
        {"backbone": "SiT-S/2"},
        {"batch_size": 8},
        {"seed": 1},
        {"precision": "bf16"},
        {"optimizer": {"lr": 2e-4}},
        {"optimizer": {"grad_clip": None}},
        {"ema_decay": 0.5},
        {"label_dropout": 0.2},
        {"time": "log_normal"},
        {"path": "cosine"},
        {"velocity_cosine": 1.0},
        {"horizontal_flip": True},
    ],
    ids=str,
)
def test_what_determines_weights_changes_the_key(change):
    phases = [Phase(until=10, term=NoTerm())]
    assert history.key(Run(**{**BASE, **change}, phases=phases), 10) != history.key(Run(**BASE, phases=phases), 10)


@pytest.mark.parametrize("change", [{"guidance_scale": 15.0}, {"weight": 0.4}, {"target_norm": "layer"}], ids=str)
def test_a_method_s_options_change_the_key(change):
    assert history.key(guided(10, **change), 5) != history.key(guided(10), 5)


@pytest.mark.parametrize(
    "term",
    [
        DispersiveTerm(),
        DispersiveTerm(variant="hinge"),
        LayerSyncTerm(layers=[[8, 4]]),
        LayerSyncTerm(layers=[[8, 4], [12, 6]]),
        SraTerm(layers=[8, 4]),
        SraTerm(layers=[8, 4], weight=0.2),
        VaeAlignTerm(block=6),
        VaeAlignTerm(block=6, weight=Schedule(steps=(0, 9), weights=(0.5, 0.1))),
    ],
    ids=repr,
)
def test_no_two_terms_share_a_history(term):
    def key(other):
        return history.key(Run(**BASE, phases=[Phase(until=10, term=other)]), 5)

    assert key(term) != key(NoTerm())
    assert key(type(term).model_validate(term.model_dump(mode="json"))) == key(term)


def test_an_encoder_enters_by_its_weights_and_not_by_its_path(tmp_path):
    def key(folder: str, weights: bytes) -> str:
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "config.json").write_text("{}")
        (tmp_path / folder / "model.safetensors").write_bytes(weights)
        encoder = EncoderSpec(kind="dinov2", path=str(tmp_path / folder))
        run = Run(**BASE, phases=[Phase(until=10, term=RepaTerm(block=4), projector_width=8, encoder=encoder)])
        return history.key(run, 5)

    assert key("here", b"weights") == key("there", b"weights") != key("elsewhere", b"others")


def test_the_step_itself_is_part_of_it_and_must_exist():
    run = guided(10)
    assert len({history.key(run, step) for step in range(41)}) == 41
    with pytest.raises(ValueError):
        history.key(run, 41)


def test_weight_zero_and_none_are_not_the_same_history():
    # Their weights are equal bit for bit, but one has a teacher to wait for: nothing is assumed, all is trained.
    none = Run(**BASE, phases=[Phase(until=40, term=NoTerm())])
    assert history.key(guided(40, weight=0.0), 10) != history.key(none, 10)
