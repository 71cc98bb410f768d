"""Random damage to files and command lines gives one clear line and exit code 2, or a plan; never a traceback."""

import contextlib
import copy
import io
import re
import shutil
import string
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raysweep import driver
from raysweep.commands import run

ROOT = Path(__file__).parents[2]
SPACES = sorted((ROOT / "search_spaces").glob("*.yaml"))
SMALL = """\
study: mutated
trial:
  backbone: SiT-B/2
  iterations: 400000
  optimizer: {lr: {log_uniform: [1e-4, 1e-2]}}
  method:
    kind: self_guided
    guidance_scale: {choice: [1.0, 30.0], default: 30.0}
    layers: {choice: [[8, 6], [8, 4]]}
    stop: {choice: [50000, 100000, never]}
    teacher: {method: {choice: [vae_align, none]}, iterations: 200000}
search: {mode: explore, rungs: [100000, 200000], trials: 6, scheduler: {kind: asha, eta: 2}}
probe: {samples: 10000}
launch: {workers: 2}
enqueue:
  - {set: {}, fid: 22.91, is: 70.37}
  - {set: {method.guidance_scale: 1.0}}
"""
JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**30), 10**30),
    st.floats(allow_nan=True, allow_infinity=True),
    st.text(max_size=12),
    st.sampled_from(
        ["self_guided", "SiT-XL/2", "never", "emoji9", "1e-4", "../..", "/etc/passwd", "~", "2026-11-23", "0x1"]
    ),
    st.lists(st.integers(-3, 10), max_size=3),
    st.dictionaries(
        st.sampled_from(["choice", "uniform", "log_uniform", "integers", "default", "kind", "x"]),
        st.integers(),
        max_size=2,
    ),
    st.just({"choice": []}),
    st.just({"uniform": [2, 1]}),
)
PLACED = re.compile(r"(\S+\.yaml:\d+: )|(^--?\w)|(^raysweep \w+: )|(\.yaml: )", re.M)


def call(arguments: list[str]) -> tuple[int, str]:
    """Run the command; returns its exit code and stderr."""
    err = io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = run.main(arguments)
        except SystemExit as leaving:
            code = leaving.code
    return code, err.getvalue()


def check(arguments: list[str], folder: Path, before: set[Path]) -> int:
    code, err = call(arguments)
    assert code in (0, 2), err
    assert "Traceback" not in err
    if code == 2:
        assert PLACED.search(err), err
        assert set(folder.rglob("*")) == before, "something was written"
    return code


def paths(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values in a tree, including inner nodes."""
    places = [path] if path else []
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        places += paths(value, (*path, key))
    return places


def mutate(tree: Any, draw: Any) -> Any:
    """Change one place of a tree: replace, delete, rename or nest it, or copy it elsewhere."""
    place = draw(st.sampled_from(paths(tree)))
    node = tree
    for key in place[:-1]:
        node = node[key]
    how = draw(st.sampled_from(["replace", "delete", "rename", "nest", "swap"]))
    value = node[place[-1]]
    if how == "replace":
        node[place[-1]] = draw(JUNK)
    elif how == "delete":
        del node[place[-1]]
    elif how == "rename" and isinstance(node, dict):
        node[draw(st.text(string.ascii_letters + "._-é ", max_size=8))] = node.pop(place[-1])
    elif how == "nest":
        node[place[-1]] = {"choice": [value, draw(JUNK)]}
    else:
        other = draw(st.sampled_from(paths(tree)))
        target = tree
        with contextlib.suppress(LookupError, TypeError):
            for key in other[:-1]:
                target = target[key]
            target[other[-1]] = copy.deepcopy(value)
    return tree


SETTINGS = settings(max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@SETTINGS
@given(data=st.data())
def test_a_space_with_wrong_values_is_refused_or_planned(tmp_path, data):
    tree = yaml.safe_load(SMALL)
    for _ in range(data.draw(st.integers(1, 3))):
        tree = mutate(tree, data.draw)
        if not paths(tree):
            break
    space = tmp_path / "space.yaml"
    space.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
    check([str(space), "--plan", "--json"], tmp_path, {space})


@SETTINGS
@given(data=st.data())
def test_a_damaged_file_is_refused_or_planned(tmp_path, data):
    text = SMALL
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text)))
        cut = data.draw(st.integers(0, 30))
        more = data.draw(
            st.one_of(
                st.text(max_size=6),
                st.sampled_from(
                    [
                        "\t",
                        "*a",
                        "&a ",
                        "!!python/name:os.system ",
                        "{",
                        "[",
                        ": ",
                        "- ",
                        "? ",
                        "<<: ",
                        "\0",
                        "%",
                        "|\n",
                        "---\n",
                    ]
                ),
            )
        )
        text = text[:at] + more + text[at + cut :]
    space = tmp_path / "space.yaml"
    space.write_bytes(text.encode("utf-8", "surrogatepass"))
    check([str(space), "--plan", "--json"], tmp_path, {space})


WORDS = st.one_of(
    st.text(max_size=10),
    st.sampled_from(
        [
            "",
            "-",
            "--",
            "0",
            "-1",
            "nan",
            "inf",
            "1e999",
            "cluster",
            "smoke",
            "auto",
            "http://",
            "s3://",
            "file:///",
            "x=y",
        ]
    ),
)
OPTIONS = [
    "--profile",
    "--set",
    "--storage",
    "--tracking-uri",
    "--address",
    "--verify-sharing",
    "--svg",
    "--price-per-gpu-hour",
]
SETS = st.tuples(
    st.sampled_from(
        [
            "trial.batch_size",
            "search.trials",
            "search.scheduler.eta",
            "launch.workers",
            "launch.placement_strategy",
            "enqueue",
            "trial.method",
            "x",
            "study",
            "trial..x",
            "=",
            "probe",
        ]
    ),
    WORDS,
).map("=".join)


class Started(Exception):
    """A command line that would have started a sweep."""


def _start(*_):
    raise Started


@settings(SETTINGS, max_examples=150)
@given(data=st.data())
def test_a_mutated_command_line_is_refused_or_planned(tmp_path, monkeypatch, data):
    """A command line that passes every check is stopped before it takes a lease."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(driver, "Leases", _start)  # made when all checks have passed
    space = tmp_path / "space.yaml"
    space.write_text(SMALL)
    arguments = [data.draw(st.one_of(st.just(str(space)), WORDS.filter(lambda word: word != "")))]
    for _ in range(data.draw(st.integers(0, 4))):
        option = data.draw(st.sampled_from([*OPTIONS, "--plan", "--json", "--extend", "--unknown"]))
        arguments.append(option)
        if option in OPTIONS:
            arguments.append(data.draw(SETS if option == "--set" else WORDS))
    written = {space}
    try:
        code, err = call(arguments)
    except Started:
        code, err = 0, ""
    assert code in (0, 2) and "Traceback" not in err, (arguments, err)
    if code == 2:
        assert PLACED.search(err) or "give the path of a search space" in err, (arguments, err)
        assert set(tmp_path.rglob("*")) == written, arguments
    for entry in set(tmp_path.iterdir()) - written:
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


@pytest.mark.parametrize("space", SPACES, ids=lambda path: path.stem)
def test_what_is_committed_is_planned(space, tmp_path):
    assert check([str(space), "--plan", "--json"], tmp_path, set()) == 0
