"""The growth benchmark: its fit, and the structure of its results. Times are not checked."""

import json
import re

import pytest

from benchmarks import growth


@pytest.mark.parametrize("b", [0.0, 1.0, 1.5, 2.0])
def test_the_exponent_of_a_power_is_found_though_every_size_pays_something_alike(b):
    sizes = [1, 10, 100, 1_000, 10_000, 100_000]
    assert growth.exponent(sizes, [3 * size**b for size in sizes]) == pytest.approx(b)
    assert growth.exponent(sizes, [0.5 + 3 * size**b for size in sizes]) == pytest.approx(b, abs=0.01)
    assert growth.exponent(sizes[:1], [1.0]) is None


@pytest.mark.slow
def test_all_parts_are_measured_by_size(tmp_path):
    results = growth.measure([8, 4], [16, 8], [], str(tmp_path))
    assert list(tmp_path.iterdir()) == []  # the studies were removed
    assert set(results["trials"]) == {"plan", "search", "dispatch", "report"}
    for rows in results["trials"].values():
        assert list(rows) == [4, 8]
        assert all(row["seconds"] > 0 and row["cpu_s"] > 0 and row["peak_mib"] > 10 for row in rows.values())
    assert list(results["batch"]) == [8, 16] and results["ranks"] == {}
    for batch, row in results["batch"].items():
        assert row["images_per_s"] == pytest.approx(batch / row["step_s"])
    assert set(results["exponents"]) == {*results["trials"], "batch"}
    assert json.loads(json.dumps(results))["batch"]["16"] == results["batch"][16]
    growth.draw(results, tmp_path / "out")
    svg = (tmp_path / "out" / "growth.svg").read_text()
    assert (tmp_path / "out" / "growth.png").stat().st_size > 10_000
    assert {"plan", "search", "dispatch", "report"} <= set(re.findall(r">(\w+): N\^", svg)) and "ranks" not in svg


def test_parts_without_sizes_are_left_out():
    assert growth.measure([], [], []) == {"trials": {}, "batch": {}, "ranks": {}, "exponents": {}}
