"""A key names what determines the weights: all of it, and nothing else."""

from pathlib import Path

import pytest

from raysweep import history, runs, space
from trainables.spec import NoTerm, Phase, Run, SelfGuidedTerm, TeacherRef, VaeAlignTerm

ROOT = Path(__file__).parents[2]
PINNED = {  # the default row of table5.yaml at its end, by profile: moves only with a new numerics version
    "laptop": "4967f78ef68b4ac374d0e58a1644ac8d6787fca191b032f6ead112adc369f557",
    "smoke": "303f980c07617ac436ac5068c4b93a9995148b42deefbe27f132a311c477a2e8",
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


@pytest.mark.parametrize("profile", PINNED)
def test_keys_of_the_committed_search_space_stay(profile: str):
    loaded = space.load(ROOT / "search_spaces" / "table5.yaml", profile)
    run = runs.student(loaded, loaded.trial({})[0])
    assert history.key(run, run.steps) == PINNED[profile]


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
    ],
    ids=str,
)
def test_what_determines_weights_changes_the_key(change):
    phases = [Phase(until=10, term=NoTerm())]
    assert history.key(Run(**{**BASE, **change}, phases=phases), 10) != history.key(Run(**BASE, phases=phases), 10)


@pytest.mark.parametrize("change", [{"guidance_scale": 15.0}, {"weight": 0.4}, {"target_norm": "layer"}], ids=str)
def test_a_method_s_options_change_the_key(change):
    assert history.key(guided(10, **change), 5) != history.key(guided(10), 5)


def test_the_step_itself_is_part_of_it_and_must_exist():
    run = guided(10)
    assert len({history.key(run, step) for step in range(41)}) == 41
    with pytest.raises(ValueError):
        history.key(run, 41)


def test_weight_zero_and_none_are_not_the_same_history():
    # Their weights are equal bit for bit, but one has a teacher to wait for: nothing is assumed, all is trained.
    none = Run(**BASE, phases=[Phase(until=40, term=NoTerm())])
    assert history.key(guided(40, weight=0.0), 10) != history.key(none, 10)
