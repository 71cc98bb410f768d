"""`raysweep store`: list, verify, trace and garbage-collect checkpoints; and what each trial cost."""

import json
from xml.etree import ElementTree

import lanes
import pytest

from raysweep.commands.store import main
from raysweep.space import space
from raysweep.store import history
from raysweep.store.history import probe_key
from raysweep.store.manifest import Platform
from raysweep.store.records import ProbeRecord
from raysweep.store.store import Store
from raysweep.study.costs import charges
from raysweep.study.retention import survey
from raysweep.study.state import StudyState
from raysweep.study.summary import summarize

SPACE = """\
study: kept
trial:
  iterations: 400000
  method:
    kind: self_guided
    guidance_scale: {choice: [1.0, 15.0, 30.0], default: 30.0}
    stop: {choice: [100000, 200000], default: 100000}
    teacher: {method: vae_align, iterations: {choice: [100000, 200000], default: 200000}}
search: {rungs: [100000, 200000], trials: 5, scheduler: {kind: asha, eta: 2}}
"""
# (configuration, the step of the smoke profile that it reached, metric at each rung)
PLAYED = [
    ({}, 8, 20.0),
    ({"method.stop": 200_000}, 8, 10.0),
    ({"method.guidance_scale": 1.0}, 2, 30.0),
    ({"method.guidance_scale": 15.0, "method.teacher.iterations": 100_000}, 4, None),  # still running
]


@pytest.fixture
def study(write_space, tmp_path) -> StudyState:
    """A study whose training and probes are simulated."""
    loaded = space.load(write_space(SPACE), "smoke")
    store = Store(str(tmp_path / "store"))
    made = StudyState(loaded, store)
    lane = lanes.Lane(store, made.milestones, cache=None)
    trials = [made.propose(loaded.trial(point)[1]) for point, _, _ in PLAYED]
    lane.run(lane.reach_all([(made.run(t), step) for t, (_, step, _) in zip(trials, PLAYED, strict=True)]))
    for trial, (_, step, value) in zip(trials, PLAYED, strict=True):
        for rung in [rung for rung in made.rungs(trial) if rung <= step and value is not None]:
            spec = made.probe(trial)
            metrics = {name: value for name in loaded.probe.measured}
            key = probe_key(made.run(trial), rung, spec)
            store.put_record(key, ProbeRecord(metrics, seconds=3.0, platform=Platform(workers=2)))
            if not trial.ended:
                made.probed(trial.number, rung, metrics)
    return made


def reasons(study: StudyState, **options) -> dict[str, str]:
    seen = survey(study.store, young_s=0, **options)
    return {entry.checkpoint.key: entry.reason for entry in seen.kept}


def test_what_trials_go_on_from_and_what_taught_the_best_stays(study):
    assert [trial.state for trial in study.trials] == ["COMPLETE", "COMPLETE", "PRUNED", "RUNNING"]
    other, best, pruned, unfinished = (study.run(trial) for trial in study.trials)
    teacher = best.phases[0].teacher
    kept = reasons(study, keep_best=1)
    assert kept[history.key(best, 8)] == "among the best"
    assert kept[history.key(teacher.run, teacher.step)] == "it taught the best"
    assert kept[history.key(unfinished, 4)] == "an unfinished trial goes on from it"
    younger = unfinished.phases[0].teacher
    assert kept[history.key(younger.run, younger.step)] == "it teaches an unfinished trial"
    assert kept[history.key(other, 8)] == kept[history.key(pruned, 2)] == "an ended trial stopped here"
    # A rung at which an unfinished trial will be probed stays. Intermediate checkpoints of ended trials do not.
    assert history.key(unfinished, 2) in kept and history.key(best, 4) not in kept


def test_a_budget_takes_what_is_cheapest_to_make_again_and_never_what_is_needed(study, capsys):
    _, _, pruned, _ = (study.run(trial) for trial in study.trials)
    whole = survey(study.store, keep_best=1, young_s=0)
    tight = survey(study.store, keep_best=1, young_s=0, budget_gib=whole.kept_gib - 1e-9)
    gone = {entry.checkpoint.key for entry in tight.freed} - {entry.checkpoint.key for entry in whole.freed}
    assert gone == {history.key(pruned, 2)}  # it took 2 steps, the other candidate 4
    storage = ["--storage", study.store.uri, "--young-hours", "0", "--keep-best", "1"]
    assert main(["gc", *storage, "--budget", "0", "--json"]) == 1
    facts = json.loads(capsys.readouterr().out)
    assert set(facts["kept"]) <= {
        "among the best",
        "it taught the best",
        "an unfinished trial goes on from it",
        "it teaches an unfinished trial",
    }
    assert facts["again_device_hours"] > 0 and not facts["deleted"]
    assert len(list(study.store.checkpoints())) == len(whole.kept) + len(whole.freed)  # nothing was deleted


def test_what_is_freed_is_made_again_when_it_is_wanted_and_known_until_then(study, tmp_path, capsys):
    store, run = study.store, study.run(study.trials[0])
    before = summarize(study)
    lane = lanes.Lane(store, study.milestones, cache=None)
    remains = tmp_path / "store" / "checkpoints" / "4" / ("f" * 64) / "nonce" / "state.safetensors"
    remains.parent.mkdir(parents=True)
    remains.write_bytes(b"half of it")  # left by a process that was killed
    assert main(["gc", "--storage", store.uri, "--young-hours", "0", "--delete"]) == 0
    assert not remains.exists()
    capsys.readouterr()
    assert store.find(run, 4) is None and store.find(run, 8)
    assert summarize(study) == before  # its cost is still known
    assert main(["lineage", history.key(run, 4), "--storage", store.uri]) == 0
    assert "freed" in capsys.readouterr().out
    lane.run(lane.reach_all([(run, 4)]))
    assert lane.trained[-1][1:] == (0, 4) or lane.trained[-1][1:] == (2, 4)
    assert store.find(run, 4)


def test_nothing_young_is_touched(study):
    seen = survey(study.store, keep_best=0, budget_gib=0)
    assert seen.freed == [] and seen.remains == {}


def test_what_is_damaged_is_found_and_set_aside(study, capsys):
    victim = study.store.find(study.run(study.trials[0]), 8)
    place = f"checkpoints/8/{victim.key}/{next(iter(victim.manifest.files))}"
    study.store.files.write(place, b"other bytes")
    assert main(["verify", "--storage", study.store.uri]) == 1
    assert victim.key[:12] in capsys.readouterr().out
    assert study.store.find(study.run(study.trials[0]), 8) is None
    assert main(["verify", "--storage", study.store.uri]) == 0
    assert "do not count" not in capsys.readouterr().out
    study.journal.append("noted")
    study.journal.append("noted")
    for place in ("journal", "journal-copy"):
        damaged = sorted(study.store.files.names(f"studies/{study.space.id}/{place}"))[-2]
        study.store.files.delete(f"studies/{study.space.id}/{place}/{damaged}")
    assert main(["verify", "--storage", study.store.uri]) == 0
    assert f"batches {int(damaged) + 1} do not count" in " ".join(capsys.readouterr().out.split())


def test_a_lineage_names_the_teacher_and_the_data_with_keys_and_files(study, tmp_path, capsys):
    run = study.run(study.trials[0])
    teacher = run.phases[0].teacher
    key, its_key = history.key(run, 8), history.key(teacher.run, teacher.step)
    picture = tmp_path / "lineage.svg"
    assert main(["lineage", key[:20], "--storage", study.store.uri, "--svg", str(picture), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    taught = next(one for one in facts["from"] if one["as"].startswith("taught"))
    assert (facts["key"], facts["step"], taught["key"], taught["step"]) == (key, 8, its_key, teacher.step)
    assert taught["files"] == study.store.find(teacher.run, teacher.step).manifest.checksums
    assert set(facts["passed"].values()) == {history.key(run, 2), history.key(run, 4)}
    data = {one["key"] for one in (*facts["from"], *taught["from"]) if one["as"] == "trained on it"}
    assert data == {history.describe(run, 8)["data"]}
    texts = [node.text for node in ElementTree.parse(picture).iter("{http://www.w3.org/2000/svg}text")]
    assert f"key {its_key[:16]}" in texts and f"key {key[:16]}" in texts


def test_a_listing_says_why_each_checkpoint_is_kept(study, capsys):
    assert main(["ls", "--storage", study.store.uri, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["key"] for row in rows} == {checkpoint.key for checkpoint in study.store.checkpoints()}
    assert main(["ls", "--storage", study.store.uri]) == 0
    assert f"{len(rows)} checkpoints" in capsys.readouterr().out


@pytest.mark.parametrize("place", ["nowhere", "s3://bucket/x?endpoint_override=127.0.0.1:1&scheme=http"])
def test_a_store_that_is_not_there_is_not_made(tmp_path, monkeypatch, capsys, place):
    monkeypatch.chdir(tmp_path)
    assert main(["ls", "--storage", place]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1 and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [["lineage", "zz"], ["gc", "--budget", "-1"], ["lineage", "0", "--svg", "no/x.svg"]])
def test_what_is_wrong_is_said_in_one_line(study, wrong, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    try:
        code = main([*wrong, "--storage", study.store.uri])
    except SystemExit as ended:
        code = ended.code
    assert code == 2 and "Traceback" not in capsys.readouterr().err


def test_every_second_is_charged_once(study):
    charged = charges([study])
    checkpoints = list(study.store.checkpoints())
    trained = sum(checkpoint.manifest.training.device_seconds for checkpoint in checkpoints)
    probes = [study.store.record(ProbeRecord, name[:-5]) for name in study.store.files.names("records/probes")]
    spent = trained + sum(record.device_seconds for record in probes)
    assert sum(charge.own + charge.shared for charge in charged.values()) == pytest.approx(spent)
    assert sum(charge.probes for charge in charged.values()) == pytest.approx(6.0 * len(probes))
    # The first two trials part at step 2, where both were probed. The first half of the teacher taught all four.
    first, second, pruned, _ = (charged[study.space.id, n] for n in range(4))
    assert first.own == pytest.approx(2 * (2 + 4) + 6.0 * 2)
    assert pruned.own == pytest.approx(2 * 2 + 6.0)
    teacher, shared_rung = 2 * 2 / 4 + 2 * 2 / 3, (2 * 2 + 6.0) / 2
    assert first.shared == pytest.approx(teacher + shared_rung) == pytest.approx(second.shared)
    assert summarize(study).cost.spent == pytest.approx(spent)


def test_work_that_two_studies_need_is_shared_between_them(study, write_space):
    longer = StudyState(space.load(write_space(SPACE.replace("kept", "again"), "again.yaml"), "smoke"), study.store)
    twin = longer.propose(dict(study.trials[0].point))
    for step, metrics in study.trials[0].probes.items():
        longer.probed(twin.number, step, metrics)
    alone, together = charges([study]), charges([study, longer])
    assert sum(c.own + c.shared for c in alone.values()) == pytest.approx(
        sum(c.own + c.shared for c in together.values())
    )
    assert together[longer.space.id, 0].own == 0 < together[longer.space.id, 0].shared
