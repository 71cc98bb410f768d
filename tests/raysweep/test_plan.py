"""A plan: the paper's arithmetic, the same tree as the dispatcher's, and no heavy imports."""

import json
import subprocess
import sys
from itertools import product
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from raysweep.commands.run import main
from raysweep.planning import price
from raysweep.planning.collapse import collapse
from raysweep.planning.plan import Plan
from raysweep.planning.segments import Tree
from raysweep.space import runs, space
from raysweep.store import history
from trainables.backbones.costs import cost
from trainables.config import BACKBONES
from trainables.datasets.catalog import DATASETS

SPACES = Path(__file__).parents[2] / "search_spaces"
STOPS = (50_000, 100_000, 150_000, 200_000, "never")


def altered(folder: Path, name: str, change) -> space.Space:
    """One of our spaces with a change in its YAML."""
    raw = yaml.safe_load((SPACES / f"{name}.yaml").read_text())
    change(raw)
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(raw))
    return space.load(folder / f"{name}.yaml")


def ninety(raw: dict) -> None:
    """Table 5's rows at five early-stop points each."""
    raw["enqueue"] = [row | {"set": row["set"] | {"method.stop": s}} for row, s in product(raw["enqueue"], STOPS)]
    raw["search"] |= {"trials": 90, "scheduler": {"kind": "asha", "eta": 3}, "rungs": [50_000, 100_000, 200_000]}


def steps(costs) -> tuple[float, float, float]:
    return (costs.together.steps, costs.teachers_by_hand.steps, costs.apart.steps)


def test_table_5_costs_what_the_paper_s_arithmetic_says():
    plan = Plan([space.load(SPACES / "table5.yaml", overrides=["search.trials=18"])])
    # 18 students of 400K; teachers of 300K, 200K and 200K, or six distinct ones, or one for each student.
    assert steps(plan.grid) == (7_900_000, 8_250_000, 10_650_000)
    assert plan.critical_path == 700_000  # the oldest teacher, then its student
    assert steps(plan.expected) == (2_400_000, 2_750_000, 5_150_000)
    assert plan.grid.together.probes == 18 * 4


def _kind(row: dict) -> str | None:
    method = row["set"].get("method")
    return method["kind"] if isinstance(method, dict) else method


def test_tables_that_share_teachers_cost_less_together(tmp_path):
    def base_only(raw):
        """Keep SiT-B/2 at 400K iterations: plain, guided, or by a method that trains a teacher of Table 5."""
        methods = (None, "repa", "vae_align", "self_guided")
        small = [row for row in raw["enqueue"] if row["set"].get("backbone", "SiT-B/2") == "SiT-B/2"]
        small = [row for row in small if "iterations" not in row["set"]]
        raw["search"]["mode"] = "reproduce"
        raw["enqueue"] = [row for row in small if raw["study"] == "table5" or _kind(row) in methods]

    plan = Plan([altered(tmp_path, name, base_only) for name in ("table1", "table4", "table5")])
    # Apart: 1.6M and a teacher of 200K, 1.6M and two of them, and Table 5's 10.65M.
    assert (plan.grid.together.steps, plan.grid.apart.steps) == (8_400_000, 14_450_000)
    assert plan.expected is None  # reproductions prune nothing


def test_an_early_stop_axis_shares_what_comes_before_the_stop(tmp_path):
    plan = Plan([altered(tmp_path, "table5", ninety)])
    # Of each row: guided to its end, and 350K, 300K, 250K and 200K after the four stops.
    assert plan.grid.together.steps == 18 * (400_000 + 350_000 + 300_000 + 250_000 + 200_000) + 700_000
    assert plan.grid.together.probes < plan.grid.apart.probes == 90 * 4
    together, by_hand, apart = steps(plan.expected)
    assert together <= apart / 5 and together <= by_hand / 2


SMOKE = space.load(SPACES / "table5.yaml", "smoke")
EVERY = list(SMOKE.points())


@given(st.data())
def test_two_runs_are_the_same_in_the_tree_when_their_keys_are(data):
    tree = Tree([])
    pairs = []
    for _ in range(2):
        run = runs.student(SMOKE, SMOKE.trial(data.draw(st.sampled_from(EVERY)))[0])
        chosen = data.draw(st.sampled_from([run, *(teacher.run for teacher in runs.teachers(run))]))
        step = data.draw(st.integers(1, chosen.steps))
        pairs.append((tree.identity(chosen, step), history.key(chosen, step)))
    (one, its_key), (other, other_key) = pairs
    assert (one == other) == (its_key == other_key)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_sizes_are_those_of_the_networks(backbone):
    data = "imagenet256" if BACKBONES[backbone].family == "SiT" else "imagenet256_vavae"
    known = cost(backbone, DATASETS[data].latent_shape, DATASETS[data].num_classes)
    assert price.parameters(backbone, data) == pytest.approx(known.parameters, rel=0.01)
    assert price.multiply_adds(backbone, data) == pytest.approx(known.multiply_adds, rel=0.01)


def test_what_is_alike_is_drawn_once_and_nothing_is_left_out(tmp_path):
    plan = Plan([altered(tmp_path, "table5", ninety)])
    roots = collapse(plan.segments)

    def lengths(group) -> int:
        return group.count * (group.end - group.begin) + sum(map(lengths, group.children))

    assert sum(map(lengths, roots)) == plan.grid.together.steps
    assert len(roots) == 3 + 6  # teachers, and students grouped by their teacher


def test_the_command_needs_neither_ray_nor_torch_nor_the_data(tmp_path):
    code = (
        "import sys; from raysweep.run import main; "
        f"code = main([{str(SPACES / 'table5.yaml')!r}, '--plan', '--json', '--price-per-gpu-hour', '2']); "
        "sys.exit(code or {'ray', 'torch', 'mlflow', 'optuna'} & set(sys.modules) or 0)"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    facts = json.loads(ran.stdout)
    assert facts["grid"]["together"]["money"] == pytest.approx(2 * facts["grid"]["together"]["gpu_hours"])
    assert any("stand for what TPE will propose" in note for note in facts["notes"])
    assert list(tmp_path.iterdir()) == []


def test_a_plan_is_drawn_as_svg(tmp_path, capsys):
    picture = tmp_path / "plan.svg"
    assert main([str(SPACES / "table5.yaml"), "--plan", "--svg", str(picture)]) == 0
    assert "13 × self_guided by vae_align at 200K" in capsys.readouterr().out
    texts = [node.text for node in ElementTree.parse(picture).iter("{http://www.w3.org/2000/svg}text")]
    assert "13 × self_guided by vae_align at 200K" in texts


def test_mistakes_in_plan_options_are_one_line(tmp_path, capsys):
    assert main([str(SPACES / "table5.yaml"), "--plan", "--svg", str(tmp_path / "no" / "plan.svg")]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    for wrong in (["--svg", "x"], ["--plan", "--price-per-gpu-hour", "-1"]):
        with pytest.raises(SystemExit) as ended:
            main([str(SPACES / "table5.yaml"), *wrong])
        assert ended.value.code == 2
