"""What can be loaded as a snapshot, that it is the same network, and that a file is never a program."""

import argparse
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from trainables import backbones, snapshot
from trainables.datasets import catalog
from trainables.training.checkpoint import Checkpoint

SHAPE = {"in_channels": 8, "input_size": 8, "num_classes": 9}


def network(seed: int) -> torch.nn.Module:
    """A small SiT with weights of its own; fresh ones give no velocity at all."""
    model = backbones.create("SiT-T/2", **SHAPE)
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=source)
    return model.eval()


EMA, RAW = network(1), network(2)


def same_network(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    x, t, y = torch.ones(2, 8, 8, 8), torch.tensor([0.2, 0.7]), torch.tensor([0, 9])
    with torch.no_grad():
        return torch.equal(one(x, t, y).velocity, other(x, t, y).velocity)


def repa(**changes) -> dict:
    """What REPA's train.py saves."""
    args = argparse.Namespace(model="SiT-T/2", num_classes=9, proj_coeff=0.5, report_to=None)
    optimizer = torch.optim.AdamW(RAW.parameters()).state_dict()
    whole = {"model": RAW.state_dict(), "ema": EMA.state_dict(), "opt": optimizer, "args": args, "steps": 7}
    return whole | changes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Our own files, without a manifest."""
    Checkpoint(3, RAW.state_dict(), EMA.state_dict()).save(tmp_path)
    return tmp_path


# --- files


@pytest.mark.parametrize("zipped", [True, False])
def test_a_repa_checkpoint_with_its_namespace(tmp_path, zipped):
    path = tmp_path / "last.pt"
    torch.save(repa(), path, _use_new_zipfile_serialization=zipped)
    loaded = snapshot.load(path, source="repa")
    assert same_network(loaded.backbone, EMA)
    assert not loaded.backbone.training and not any(p.requires_grad for p in loaded.backbone.parameters())
    assert (loaded.name, loaded.source, loaded.weights, loaded.step) == ("SiT-T/2", "repa", "ema", 7)
    assert (loaded.latent_shape, loaded.num_classes, loaded.data) == ((8, 8, 8), 9, None)
    assert loaded.parameters == sum(p.numel() for p in EMA.parameters())
    raw = snapshot.load(path, source="repa", weights="raw")
    assert same_network(raw.backbone, RAW) and raw.weights == "raw"


def test_a_repa_checkpoint_is_recognised_by_its_projectors(tmp_path):
    state = EMA.state_dict() | {"projectors.0.0.weight": torch.zeros(8, 96), "projectors.0.0.bias": torch.zeros(8)}
    torch.save(repa(ema=state), tmp_path / "last.pt")
    loaded = snapshot.load(tmp_path / "last.pt")
    assert loaded.source == "repa" and same_network(loaded.backbone, EMA)


def test_bare_state_dicts_prefixes_and_the_step_in_a_name(tmp_path):
    state = {f"module.{name}": tensor for name, tensor in EMA.state_dict().items()}
    torch.save(state, tmp_path / "0400000.pt")
    save_file(state, tmp_path / "bare.safetensors")
    for name, step in {"0400000.pt": 400_000, "bare.safetensors": None}.items():
        loaded = snapshot.load(tmp_path / name, source="repa")
        assert same_network(loaded.backbone, EMA)
        assert (loaded.step, loaded.weights) == (step, "only")


class Program:
    """Pickled as a call that makes a file."""

    def __init__(self, made: Path):
        self.made = made

    def __reduce__(self):
        return os.system, (f"touch {self.made}",)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("inside", [lambda p: p, lambda p: {"args": argparse.Namespace(hook=p)}])
def test_a_file_is_never_a_program(tmp_path, inside, zipped):
    path, made = tmp_path / "evil.pt", tmp_path / "made"
    torch.save(repa() | {"more": inside(Program(made))}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"evil\.pt: refused, because it imports posix\.system") as refused:
        snapshot.load(path, source="repa")
    assert not made.exists()
    assert "\n" not in str(refused.value)


WRONG_FILES = {
    "no state dict": ("a.pt", {"loss": [1.0]}, "no state dict"),
    "only numbers": ("a.pt", 3, "no state dict"),
    "of nobody known": ("a.pt", {"weight": torch.ones(2)}, "--source, one of repa, sit"),
    "no raw weights": ("a.pt", {"ema": {"weight": torch.ones(2)}}, "--weights ema"),
    "another ending": ("a.bin", {}, "known endings: .pt, .pth, .ckpt, .safetensors"),
}


@pytest.mark.parametrize("case", WRONG_FILES)
def test_wrong_files_are_refused_in_one_line(tmp_path, case):
    name, content, message = WRONG_FILES[case]
    torch.save(content, tmp_path / name)
    with pytest.raises(ValueError) as refused:
        snapshot.load(tmp_path / name, weights="raw" if "raw" in case else "ema")
    assert message in str(refused.value) and str(tmp_path) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["torn.pt", "torn.safetensors"])
@pytest.mark.parametrize("kept", [0, 100, 200_000])
def test_torn_files_are_refused_in_one_line(tmp_path, name, kept):
    path = tmp_path / name
    save_file(EMA.state_dict(), path) if name.endswith("safetensors") else torch.save(repa(), path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match="truncated") as refused:
        snapshot.load(path, source="repa")
    assert "\n" not in str(refused.value)


def test_weights_that_do_not_fit_their_source_are_named(tmp_path):
    state = EMA.state_dict()
    del state["t_embedder.mlp.0.weight"]
    torch.save(state, tmp_path / "less.pt")
    with pytest.raises(ValueError, match=r"less\.pt: .*t_embedder\.mlp\.0\.weight") as refused:
        snapshot.load(tmp_path / "less.pt", source="repa")
    assert "\n" not in str(refused.value)


# --- our own


def test_our_files_without_a_manifest(folder):
    for path in (folder, folder / "snapshot.safetensors"):
        loaded = snapshot.load(path)
        assert same_network(loaded.backbone, EMA)
        assert (loaded.name, loaded.source, loaded.step, loaded.data) == ("SiT-T/2", "raysweep", None, None)
    assert same_network(snapshot.load(folder, weights="raw").backbone, RAW)


def test_step_data_and_path_come_from_the_history(folder):
    history = {"backbone": "SiT-T/2", "step": 3, "data": catalog.identity("emoji9"), "path": "cosine"}
    loaded = snapshot.load_folder(folder, {"history": history})
    assert same_network(loaded.backbone, EMA)
    assert (loaded.step, loaded.data, loaded.path) == (3, "emoji9", "cosine")
    elsewhere = snapshot.load_folder(folder, {"history": history | {"data": "0" * 64}})
    assert elsewhere.data is None


def test_our_lightningdit_keeps_its_clock(tmp_path):
    model = backbones.create("LightningDiT-T/2", **SHAPE).eval()
    torch.nn.init.ones_(model.final_layer.linear.weight)
    Checkpoint(0, {}, model.state_dict()).save(tmp_path)
    loaded = snapshot.load(tmp_path)
    assert loaded.name == "LightningDiT-T/2" and same_network(loaded.backbone, model)


def test_a_shape_without_a_name_needs_its_heads(tmp_path):
    model = backbones.create("SiT-T/2", **SHAPE, depth=3, hidden_size=64, num_heads=4).eval()
    torch.nn.init.ones_(model.final_layer.linear.weight)
    Checkpoint(0, {}, model.state_dict()).save(tmp_path)
    torch.save(model.state_dict(), tmp_path / "bare.pt")
    for path in (tmp_path, tmp_path / "bare.pt"):
        with pytest.raises(ValueError, match="num_heads.*--heads"):
            snapshot.load(path, source="repa")
        loaded = snapshot.load(path, source="repa", num_heads=4)
        assert loaded.name == "SiT of 3 blocks, width 64, patch 2" and same_network(loaded.backbone, model)


def test_raw_weights_that_are_not_there(folder):
    (folder / "state.safetensors").unlink()
    with pytest.raises(ValueError, match="no state.safetensors"):
        snapshot.load(folder, weights="raw")


def test_a_folder_with_nothing_in_it(tmp_path):
    with pytest.raises(ValueError, match="neither manifest.json nor snapshot.safetensors"):
        snapshot.load(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", json.dumps({"manifest": {"files": {}}})])
def test_a_torn_manifest(folder, text):
    (folder / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match="truncated"):
        snapshot.load(folder)
