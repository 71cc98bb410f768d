"""A search space is legal, or refused with one line that says where the mistake is and what would be right."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysweep.commands.run import main
from raysweep.errors import UserError
from raysweep.space import domains, runs, space, yaml_file
from trainables.config import SelfGuidedTerm, SraTerm

ROOT = Path(__file__).parents[2]
TABLE5 = ROOT / "search_spaces" / "table5.yaml"

GOOD = """\
study: small
trial:
  iterations: 400000
  method:
    kind: self_guided
    layers: {choice: [[8, 6], [8, 4]]}
    weight: {uniform: [0.1, 1.0]}
    teacher: {method: vae_align, iterations: 200000}
search: {rungs: [100000], trials: 4}
"""


def refused(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        space.load(path, "smoke", list(overrides))
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("profile", space.PROFILES)
def test_table5_is_sound_at_every_profile(profile: str):
    loaded = space.load(TABLE5, profile)
    assert len(loaded.rows) == 18
    assert domains.size(loaded.tree) == 5 * 5 * 5 * 5 * 3 * 4
    reasons = [runs.unavailable(loaded.trial(row.set)[0]) for row in loaded.rows]
    assert [number for number, reason in enumerate(reasons, 1) if reason] == ([14] if profile == "cluster" else [])
    assert profile != "cluster" or "--set trial.encoder.path=" in reasons[13]


ROWS = {"table1": 28, "table2": 8, "table3": 4, "table4": 4, "figure8": 16}


@pytest.mark.parametrize("profile", space.PROFILES)
@pytest.mark.parametrize("name", ROWS)
def test_a_table_has_every_row_once_at_every_profile(name: str, profile: str):
    loaded = space.load(TABLE5.with_name(f"{name}.yaml"), profile)
    points = [loaded.trial(row.set)[1] for row in loaded.rows]
    assert len(points) == ROWS[name] and len({str(point) for point in points}) == len(points)
    for row in loaded.rows:
        trial, _ = loaded.trial(row.set)
        run = runs.student(loaded, trial)
        assert run.steps == loaded.steps(trial.iterations)
        assert loaded.rungs(trial) == [run.steps]
        for phase in run.phases:
            for pair in [phase.term.layers] if isinstance(phase.term, SelfGuidedTerm) else []:
                assert pair == (2 * run.size.depth // 3, run.size.depth // 2)


def test_the_rows_of_table1_are_the_paper_s():
    loaded = space.load(TABLE5.with_name("table1.yaml"))
    trials = [loaded.trial(row.set)[0] for row in loaded.rows]
    assert [trial.method.kind for trial in trials].count("self_guided") == 5
    lightning = [trial for trial in trials if trial.size.family == "LightningDiT"]
    assert len(lightning) == 7
    for trial in lightning:  # as its authors train it, although the file does not say so
        assert (trial.batch_size, trial.optimizer.lr, trial.optimizer.beta2) == (1024, 2e-4, 0.95)
        assert (trial.time, trial.velocity_cosine, trial.data) == ("log_normal", 1.0, "imagenet256_vavae")
        assert loaded.probe_of(trial).sampler == "euler" and loaded.probe_of(trial).timestep_shift == 0.3
    assert loaded.probe_of(trials[0]).sampler == "euler_maruyama"
    assert loaded.rows[0].reference_values(loaded.published_samples) == {"fid_50k": 31.45}


def test_guidance_is_the_family_s_unless_written(write_space):
    written = "study: a\ntrial: {backbone: %s, method: {kind: self_guided, teacher: {method: vae_align}}}\n"
    scales = {}
    for backbone in ("SiT-XL/2", "LightningDiT-XL/1"):
        loaded = space.load(write_space(written % backbone), "smoke")
        scales[backbone] = runs.student(loaded, loaded.trial({})[0]).phases[0].term.guidance_scale
    assert scales == {"SiT-XL/2": 30.0, "LightningDiT-XL/1": 10.0}


def test_a_profile_keeps_the_depth_of_every_backbone():
    for profile in ("laptop", "smoke"):
        paper, small = (space.load(TABLE5.with_name("table1.yaml"), name) for name in ("cluster", profile))
        for one, other in zip(paper.rows, small.rows, strict=True):
            here, there = paper.trial(one.set)[0].size, small.trial(other.set)[0].size
            assert (here.depth, here.family, here.patch) == (there.depth, there.family, there.patch)


def test_a_scheduled_weight_scales_with_the_steps(write_space):
    text = "study: a\ntrial:\n  method: {kind: sra, weight: {steps: [0, 200000], weights: [1.0, 0.5]}}\n"
    loaded = space.load(write_space(text), "laptop")
    term = runs.student(loaded, loaded.trial({})[0]).phases[0].term
    assert [term.weight_at(step) for step in (0, 100, 200, 300)] == [1.0, 0.75, 0.5, 0.5]


def test_sra_s_own_weight_is_its_train_py_s():
    term = SraTerm()
    at_epoch = [term.weight_at(epoch * 5004) for epoch in (0, 149, 649, 1149)]
    assert at_epoch == pytest.approx([0.2, 0.2, 2 * 0.1**1.5, 0.02])


def test_an_option_with_keys_of_its_own_is_named_by_its_kind(write_space):
    text = GOOD.replace("    kind: self_guided\n", "").split("  method:")[0]
    text += "  method: {choice: [none, {kind: vae_align, weight: {choice: [0.1, 0.5]}}]}\n"
    loaded = space.load(write_space(text), "smoke")
    trial, point = loaded.trial({"method": "vae_align", "method.weight": 0.5})
    assert trial.method.kind == "vae_align" and trial.method.weight == 0.5


def test_an_older_teacher_than_its_student_is_trained_that_far(write_space):
    loaded = space.load(write_space(GOOD.replace("iterations: 200000", "iterations: 500000")), "smoke")
    run = runs.student(loaded, loaded.trial({})[0])
    teacher = run.phases[0].teacher
    assert (run.steps, teacher.step, teacher.run.steps) == (8, 10, 10)


def test_a_profile_changes_sizes_and_never_what_is_searched():
    paper, laptop = space.load(TABLE5, "cluster"), space.load(TABLE5, "laptop")
    assert domains.all_domains(paper.tree) == domains.all_domains(laptop.tree)
    trial, _ = laptop.trial({})
    assert (trial.backbone, trial.data) == ("SiT-T/2", "emoji9")
    assert runs.milestones(laptop) == [step // 1000 for step in runs.milestones(paper)]


def test_a_domain_in_the_file_survives_the_profile(write_space):
    path = write_space(GOOD + "", "a.yaml")
    text = GOOD.replace("  iterations: 400000", "  iterations: 400000\n  batch_size: {choice: [4, 8]}")
    path = write_space(text)
    assert set(domains.all_domains(space.load(path, "smoke").tree)) == {"batch_size", "method.layers", "method.weight"}


@pytest.mark.parametrize(
    ("old", "new", "line", "key", "says"),
    [
        ("kind: self_guided", "kind: self_giuded", 5, "trial.method.kind", "known: none, vae_align, self_guided, repa"),
        ("weight:", "wieght:", 7, "trial.method.wieght", "did you mean 'weight'"),
        ("[8, 4]", "[8, 14]", 6, "trial.method.layers", "beyond SiT-T/2's 12 blocks"),
        ("kind: self_guided", "kind: layersync", 8, "trial.method.teacher", "unknown key"),
        (
            "weight: {uniform: [0.1, 1.0]}",
            "weight: {steps: [9, 2], weights: [1, 0]}",
            7,
            "trial.method.weight.steps",
            "do not increase",
        ),
        ("weight: {uniform: [0.1, 1.0]}", "weight: -1", 7, "trial.method.weight", "greater than or equal to 0"),
        ("iterations: 200000", "iterations: 0", 8, "trial.method.teacher.iterations", "greater than 0"),
        ("[[8, 6], [8, 4]]", "[]", 6, "trial.method.layers", "empty choice"),
        ("[0.1, 1.0]", "[0.1, .nan]", 7, "trial.method.weight", "finite bounds"),
        ("[0.1, 1.0]", "[1.0, 0.1]", 7, "trial.method.weight", "low < high"),
        ("trials: 4", "trails: 4", 9, "search.trails", "did you mean 'trials'"),
        ("study: small", "study: a/b", 1, "study", "pattern"),
        ("search:", "surch:", 9, "surch", "did you mean 'search'"),
        ("  iterations: 400000", "\titerations: 400000", 3, "", "indent with spaces"),
        ("study: small", "study: &a [*a]", 1, "", "alias"),
        ("trials: 4", "trials: 2020-01-01", 9, "search.trials", "quotes"),
        ("trials: 4", "trials: 4, trials: 5", 9, "search.trials", "twice"),
        ("trials: 4}", "trials: 4", 10, "", "expected"),
        ("method: vae_align,", "method: vae,", 8, "trial.method.teacher.method", "known:"),
    ],
)
def test_a_mistake_is_one_line_with_file_line_and_key(write_space, old, new, line, key, says):
    path = write_space(GOOD.replace(old, new))
    message = refused(path)
    assert message.startswith(f"{path}:{line}: {key}")
    assert says in message


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("trial.method.wieght=1", "did you mean 'weight'"),
        ("nonsense=1", "unknown key"),
        ("search.trials", "key=value"),
        ("search.trials={", "not a YAML value"),
        ("search.trials=many", "valid integer"),
        ("trial.batch_size=1", "workers"),
    ],
)
def test_a_wrong_override_names_itself(write_space, override, says):
    message = refused(write_space(GOOD), override)
    assert message.startswith("--set ") and says in message


@pytest.mark.parametrize(
    "arguments",
    [["missing.yaml"], ["--profile", "huge"], ["--set", "nonsense=1"], ["--storage"], ["--tracking-uri", "./mlruns"]],
)
def test_the_command_refuses_with_2_and_writes_nothing(write_space, tmp_path, arguments, capsys, monkeypatch):
    path = write_space(GOOD)
    monkeypatch.chdir(tmp_path)
    if arguments == ["missing.yaml"]:
        command = arguments
    elif arguments == ["--storage"]:
        (tmp_path / "file").write_text("in the way")
        command = [str(path), "--profile", "smoke", "--storage", str(tmp_path / "file" / "below")]
    else:
        command = [str(path), "--profile", "smoke", *arguments]
    before = sorted(tmp_path.iterdir())
    assert main(command) == 2
    assert sorted(tmp_path.iterdir()) == before
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_what_this_machine_lacks_is_refused_before_anything_is_written(write_space, tmp_path, capsys):
    assert main([str(write_space(GOOD)), "--storage", str(tmp_path / "runs")]) == 2  # cluster: imagenet256
    assert "imagenet256" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@given(st.floats(min_value=1e-30, max_value=1e30, allow_nan=False))
def test_floats_are_read_as_yaml_1_2_has_them(number: float):
    assert yaml_file.parse(f"{number:e}") == pytest.approx(number, rel=1e-6)
    assert isinstance(yaml_file.parse("1e-4"), float)
    assert yaml_file.parse("12") == 12 and isinstance(yaml_file.parse("12"), int)


options = st.lists(st.one_of(st.integers(), st.text(max_size=3), st.booleans()), min_size=1, max_size=4, unique_by=repr)
trees = st.recursive(
    st.integers() | options.map(lambda values: {"choice": values}),
    lambda below: (
        st.dictionaries(st.sampled_from("abc"), below, min_size=1, max_size=3)
        | st.lists(
            st.dictionaries(st.sampled_from("de"), below, min_size=1), min_size=1, max_size=2, unique_by=repr
        ).map(lambda values: {"choice": values})
    ),
    max_leaves=6,
)


@given(trees)
def test_corners_of_a_finite_space_are_all_its_points(tree):
    try:
        parsed = domains.parse({"root": tree})
    except domains.WrongDomain:
        return  # e.g. two options that give one key different domains
    points = list(domains.corners(parsed))
    assert len(points) == domains.size(parsed)
    concrete = [repr(domains.resolve(parsed, point)[1]) for point in points]
    assert len(set(concrete)) == len(points)


def test_an_inner_domain_opens_only_with_its_option(write_space):
    text = """\
study: conditional
trial:
  iterations: 100000
  method:
    choice:
      - {kind: none}
      - {kind: vae_align, weight: {uniform: [0.1, 1.0]}}
"""
    loaded = space.load(write_space(text), "smoke")
    _, plain = loaded.trial({})
    assert set(plain) == {"method"}
    trial, aligned = loaded.trial(
        {"method": '{"kind": "vae_align", "weight": {"uniform": [0.1, 1.0]}}', "method.weight": 0.3}
    )
    assert trial.method.weight == 0.3 and set(aligned) == {"method", "method.weight"}
    with pytest.raises(domains.WrongDomain):
        loaded.trial({"method.weight": 0.3})
