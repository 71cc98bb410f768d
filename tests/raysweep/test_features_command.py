"""`raysweep features`: two pictures and their numbers, of one checkpoint or of several."""

import json
from pathlib import Path

import pytest
from PIL import Image

from raysweep.commands import features
from trainables import backbones
from trainables.training.checkpoint import Checkpoint

SMALL = ["--images", "3", "--points", "40", "--times", "0", "0.5", "--scales", "0", "20", "--blocks", "1", "12"]


@pytest.fixture
def checkpoints(tmp_path: Path) -> list[str]:
    """Two files of fresh weights, the later one first."""
    paths = []
    for seed, step in enumerate((200, 100)):
        folder = tmp_path / f"step-{step}"
        folder.mkdir()
        model = backbones.create("SiT-T/2", seed=seed, in_channels=8, input_size=8, num_classes=9)
        Checkpoint(step, {}, model.state_dict()).save(folder)
        paths.append(str((folder / "snapshot.safetensors").rename(folder / f"{step:07d}.safetensors")))
    return paths


def test_pictures_and_scores_of_two_checkpoints(checkpoints, tmp_path, capsys):
    out = tmp_path / "out"
    assert features.main([*checkpoints, "--source", "repa", "--storage", str(tmp_path), "--out", str(out), *SMALL]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["blocks.png", "features.json", "guidance.png"]
    for name in ("blocks.png", "guidance.png"):
        with Image.open(out / name) as picture:
            assert min(picture.size) > 300
    assert f"guidance.png: {out / 'guidance.png'}" in capsys.readouterr().out
    facts = json.loads((out / "features.json").read_text())
    assert (facts["data"], facts["block"], facts["points"]) == ("emoji9", 8, 40)
    assert [checkpoint["step"] for checkpoint in facts["checkpoints"]] == [100, 200]
    for checkpoint in facts["checkpoints"]:
        assert [score["guidance_scale"] for score in checkpoint["separability"]] == [0, 20]
        for score in checkpoint["separability"]:
            assert 0 <= score["neighbour_accuracy"] <= 1 and -1 <= score["silhouette"] <= 1


MISTAKES = {
    "block": (["--block", "13"], "--block 13: SiT-T/2 has blocks 1 to 12"),
    "blocks": (["--blocks", "0"], "--blocks 0: SiT-T/2 has blocks 1 to 12"),
    "times": (["--times", "1.5"], "argument --times: '1.5'; give a number from 0 to 1"),
    "images": (["--images", "0"], "argument --images: '0'; give a whole number of 1 or more"),
    "points": (["--points", "5"], "argument --points: '5'; give a whole number of 18 or more"),
    "scales": (["--scales", "inf"], "argument --scales: 'inf'; give a number"),
    "data": (["--data", "imagenet256"], "is not on this machine"),
    "seed": (["--seed", "-1"], "argument --seed: '-1'; give a whole number of 0 or more"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_explained_in_the_last_line_and_writes_nothing(checkpoints, tmp_path, capsys, mistake):
    options, message = MISTAKES[mistake]
    before = sorted(tmp_path.rglob("*"))
    given = [*checkpoints, "--source", "repa", "--storage", str(tmp_path), "--out", str(tmp_path / "out"), *SMALL]
    try:
        code = features.main([*given, *options])
    except SystemExit as ended:  # by argparse
        code = ended.code
    err = capsys.readouterr().err
    assert code == 2 and message in err.splitlines()[-1] and "Traceback" not in err
    assert sorted(tmp_path.rglob("*")) == before


def test_an_unknown_checkpoint_and_a_file_in_the_way(checkpoints, tmp_path, capsys):
    assert features.main(["nothing", "--storage", str(tmp_path)]) == 2
    assert "no checkpoint 'nothing'" in capsys.readouterr().err
    assert features.main([*checkpoints, "--source", "repa", "--out", checkpoints[0]]) == 2
    assert "a file is in the way" in capsys.readouterr().err
