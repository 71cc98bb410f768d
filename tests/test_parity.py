"""Our networks and samplers against the outputs that the reference repositories gave."""

from __future__ import annotations

import json
import math
from pathlib import Path

import parity
import pytest
import torch
from safetensors.torch import save_file

from trainables.backbones.sit import sincos_positions

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = (ROOT.parent / "shared" / "golden", ROOT / "tests" / "data" / "golden")
FILES = next((found for folder in FOLDERS if (found := sorted(folder.glob("*.safetensors")))), [])

# The network runs in float32 inside the samplers too: what rounds differently there is all that may differ.
TOLERANCE = 1e-5  # of the reference's largest value


@pytest.mark.skipif(not FILES, reason="no golden files beside this checkout")
def test_what_a_golden_file_holds_is_what_we_compute() -> None:
    rows = [row for path in FILES for row in parity.check(path)]
    checked = [row for row in rows if "output" in row]
    assert {row["output"] for row in checked} >= {"out.xt", "out.v", "hidden.1", "loss.denoise_per_sample"}
    assert {row["output"] for row in checked} >= {"out.euler_ode", "out.heun_ode", "out.euler_maruyama_sde"}
    assert [row for row in checked if not row["max_abs_err"] <= TOLERANCE * row["max_ref"]] == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_positions_are_the_references(path: Path) -> None:
    case = parity.Case.load(path)
    if "model.pos_embed" not in case.tensors:
        pytest.skip("no network in this file")
    table = case.tensors["model.pos_embed"]  # (1, T, D); loading copies it, so the outputs would not show ours
    assert torch.equal(sincos_positions(table.shape[2], math.isqrt(table.shape[1])), table)


def test_a_file_that_says_nothing_of_itself_is_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "odd.safetensors"
    save_file({"out.v": torch.zeros(2)}, path)
    assert parity.main([str(path), str(path)]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == [{"file": str(path), "skipped": "no check yet for a file without a source"}] * 2
