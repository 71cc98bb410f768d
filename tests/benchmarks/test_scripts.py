"""The benchmarks run at tiny sizes and compare what they claim to compare. Times are not checked."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TINY = "--backbone SiT-T/2 --latent 8 8".split()


def run_script(script: str, *arguments: str) -> dict:
    """Run a benchmark; returns the JSON in its last line."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "benchmarks" / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_repa_s_step_and_ours_have_the_same_losses(precision):
    options = ["--batch", "4", "--precision", precision, "--projector", "8", "--steps", "3", "--repeats", "1"]
    rows = {row["row"]: row for row in run_script("step.py", *TINY, *options, "--no-compile")["SiT-T/2"]}
    assert rows["losses apart"]["share"] < 1e-6  # two implementations of AdamW round apart
    assert {"reference", "none", "vae_align", "self_guided", "cohort of 4"} <= rows.keys()
    assert ("self_guided, teacher bf16" in rows) == (precision == "fp32")


@pytest.mark.slow
def test_samplers_are_timed_at_the_best_batch():
    result = run_script("sampling.py", *TINY, "--batches", "2", "3", "--repeats", "1", "--no-compile")
    assert result["batch"] in (2, 3) and result["samplers"]["SDE, 250 steps"]["x"] == [1.0]


@pytest.mark.slow
def test_the_cost_of_checkpoints_is_measured():
    result = run_script("publishing.py", *TINY, "--every-s", "0.2", "--seconds", "0.6", "--repeats", "1")
    assert result.keys() == {"none", "by a thread", "with a stop for each"} and result["none"]["share"] == 0


def test_floors_of_the_paper_s_backbones():
    result = run_script("floors.py", "--backbone", "SiT-B/2", "--batch", "1", "--tflops", "1", "--tb-s", "1")["SiT-B/2"]
    assert result["operations_ms"] == pytest.approx(3 * 2 * 23.0, rel=0.01)  # 23.0 G multiply-adds, as reported
    # the teacher's 8 of 12 blocks twice, and a projector of 768-2048-2048-768 on 256 tokens
    projector = 256 * (2 * 768 * 2048 + 2048**2) / 23.0e9
    assert result["guided_ms"] / result["operations_ms"] == pytest.approx((3 + 4 / 3 + 3 * projector) / 3, rel=0.01)


def test_storage_calls_do_not_grow_with_drivers_journals_and_checkpoints():
    sizes = ["--drivers", "20", "--claims", "80", "--trials", "300", "--checkpoints", "3000", "--ms", "0"]
    calls = {name: row["calls"] for name, row in run_script("storage.py", *sizes).items()}
    assert calls["look at 20 drivers, 80 tasks"] <= 3
    assert calls["append to one of 300 entries"] == calls["append five entries together"] == 2
    assert calls["start beside 3000 checkpoints"] <= calls["start in an empty store"]
