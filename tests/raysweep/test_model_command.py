"""`raysweep model`: what a backbone costs, as a user sees it."""

from __future__ import annotations

import json

import pytest

from raysweep import cli
from raysweep.commands import model


def test_the_table_shows_the_published_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    assert model.main(["SiT-S/2"]) == 0
    shown = capsys.readouterr().out
    assert all(number in shown for number in ("32,858,896", "32,865,056", "98,304", "6.05", "256", "4x32x32"))


def test_json_is_one_object_with_the_familys_own_latents(capsys: pytest.CaptureFixture[str]) -> None:
    assert model.main(["LightningDiT-T/1", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["model"], facts["latent"], facts["classes"]) == ("LightningDiT-T/1", [32, 16, 16], 1000)
    assert facts["gflops"] == facts["multiply_adds"] / 1e9
    assert facts["tokens"] == 256


def test_latents_and_classes_may_be_others(capsys: pytest.CaptureFixture[str]) -> None:
    counts = []
    for classes in ("10", "20"):
        assert model.main(["SiT-T/2", "--latent", "3x8x8", "--classes", classes, "--json"]) == 0
        counts.append(json.loads(capsys.readouterr().out))
    assert counts[0]["tokens"] == 16
    assert counts[1]["parameters"] - counts[0]["parameters"] == 10 * 96


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["SiT-Q/2"], "no backbone 'SiT-Q/2'; known: SiT-T/2, "),
        (["SiT-T/2", "--latent", "4x32"], "'4x32' is not a shape; write CHANNELSxHEIGHTxWIDTH"),
        (["SiT-T/2", "--latent", "4x31x31"], "31 is not a multiple of patch_size 2"),
        (["SiT-T/2", "--latent", "4x32x16"], "latents must be square"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert model.main(arguments) == 2
    shown = capsys.readouterr()
    assert line in shown.err
    assert (shown.out, shown.err.count("\n")) == ("", 1)


def test_a_number_of_classes_is_a_whole_number_of_1_or_more(capsys: pytest.CaptureFixture[str]) -> None:
    for value in ("0", "1.5", "many", "inf"):
        with pytest.raises(SystemExit) as ended:
            model.main(["SiT-T/2", "--classes", value])
        assert ended.value.code == 2
        assert f"argument --classes: '{value}'; give a whole number of 1 or more" in capsys.readouterr().err


def test_model_is_a_command_of_raysweep(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["raysweep", "model", "SiT-T/8", "--json"])
    assert cli.main() == 0
    assert json.loads(capsys.readouterr().out)["tokens"] == 16
    monkeypatch.setattr("sys.argv", ["raysweep", "modle"])
    assert cli.main() == 2
    assert "model" in capsys.readouterr().err
