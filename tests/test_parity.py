"""Our networks and samplers against the outputs that the reference repositories gave."""

from __future__ import annotations

import json
import math
from pathlib import Path

import parity
import pytest
import torch
from safetensors.torch import save_file

from trainables.backbones.base import sincos_positions
from trainables.backbones.lightningdit import Rotary

ROOT = Path(__file__).resolve().parent.parent
OURS, ALL = ROOT / "tests" / "data" / "golden", ROOT.parent / "shared" / "golden"
# Beside this checkout lie those that are left out of it for their size as well.
FILES = sorted({path.name: path for folder in (OURS, ALL) for path in folder.glob("*.safetensors")}.values())

# The network runs in float32 inside the samplers too: what rounds differently there is all that may differ.
TOLERANCE = 1e-5  # of the reference's largest value


NETWORK = {"out.v", "hidden.1", "out.xt", "loss.denoise_per_sample"}
SAMPLERS = {"out.euler_ode", "out.heun_ode", "out.euler_maruyama_sde"}
METHODS = {"out.repa_projection", "loss.repa", "loss.dispersive", "loss.layersync_mean", "loss.sra"}


def test_what_a_golden_file_holds_is_what_we_compute() -> None:
    rows = [row for path in FILES for row in parity.check(path)]
    unchecked = [row["file"] for row in rows if "output" not in row]
    assert not [file for file in unchecked if Path(file).parent == OURS]
    rows = [row for row in rows if "output" in row]
    assert {row["output"] for row in rows} >= NETWORK | SAMPLERS | METHODS
    assert [row for row in rows if not row["max_abs_err"] <= TOLERANCE * row["max_ref"]] == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_tables_are_the_references(path: Path) -> None:
    """Loading copies them, so the outputs would not show ours."""
    weights = parity.Case.load(path).part("model.")
    if "pos_embed" not in weights:
        pytest.skip("no network of this name in this file")
    table = weights["pos_embed"]  # (1, T, D)
    grid = math.isqrt(table.shape[1])
    assert torch.equal(sincos_positions(table.shape[2], grid), table)
    if "feat_rope.freqs_cos" in weights:
        rotary = Rotary(weights["feat_rope.freqs_cos"].shape[1], grid)
        assert torch.equal(rotary.freqs_cos, weights["feat_rope.freqs_cos"])
        assert torch.equal(rotary.freqs_sin, weights["feat_rope.freqs_sin"])


def test_a_file_that_says_nothing_of_itself_is_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "odd.safetensors"
    save_file({"out.v": torch.zeros(2)}, path)
    assert parity.main([str(path), str(path)]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == [{"file": str(path), "skipped": "no check yet for a file without a source"}] * 2


def test_outputs_without_a_check_are_listed(tmp_path: Path) -> None:
    case = parity.Case.load(OURS / "sit_repa.safetensors")
    path = tmp_path / "more.safetensors"
    save_file(case.tensors | {"out.novelty": torch.zeros(2)}, path, {"case": json.dumps(case.about)})
    rows = list(parity.check(path))
    assert rows[-1] == {"file": str(path), "skipped": "no check yet for out.novelty"}
    assert {row.get("output") for row in rows} >= NETWORK
