"""A search space is right, or refused with one line that says where and what would be right."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysweep import domains, runs, space, yamlfile
from raysweep.errors import UserError
from raysweep.run import main

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
    assert len(loaded.published) == 18
    assert domains.size(loaded.tree) == 5 * 5 * 5 * 5 * 3 * 4
    reasons = [runs.unavailable(loaded.trial(row.set)[0]) for row in loaded.published]
    assert [number for number, reason in enumerate(reasons, 1) if reason] == [14]
    assert "encoder" in reasons[13]


def test_a_profile_changes_sizes_and_never_what_is_searched():
    paper, laptop = space.load(TABLE5, "cluster"), space.load(TABLE5, "laptop")
    assert domains.domains(paper.tree) == domains.domains(laptop.tree)
    trial, _ = laptop.trial({})
    assert (trial.backbone, trial.data) == ("SiT-T/2", "emoji9")
    assert runs.milestones(laptop) == [step // 2000 for step in runs.milestones(paper)]


def test_a_domain_in_the_file_survives_the_profile(write_space):
    path = write_space(GOOD + "", "a.yaml")
    text = GOOD.replace("  iterations: 400000", "  iterations: 400000\n  batch_size: {choice: [4, 8]}")
    path = write_space(text)
    assert set(domains.domains(space.load(path, "smoke").tree)) == {"batch_size", "method.layers", "method.weight"}


@pytest.mark.parametrize(
    ("old", "new", "line", "key", "says"),
    [
        ("kind: self_guided", "kind: self_giuded", 5, "trial.method.kind", "known: none, vae_align, self_guided, repa"),
        ("weight:", "wieght:", 7, "trial.method.wieght", "did you mean 'weight'"),
        ("[8, 4]", "[8, 14]", 6, "trial.method.layers", "beyond SiT-T/2's 12 blocks"),
        ("iterations: 200000", "iterations: 500000", 8, "trial.method.teacher.iterations", "older than its own run"),
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
        ("search.trials=many", "valid integer"),
        ("trial.batch_size=7", "workers"),
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
    assert yamlfile.parse(f"{number:e}") == pytest.approx(number, rel=1e-6)
    assert isinstance(yamlfile.parse("1e-4"), float)
    assert yamlfile.parse("12") == 12 and isinstance(yamlfile.parse("12"), int)


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
    concrete = [repr(domains.at(parsed, point)[1]) for point in points]
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
