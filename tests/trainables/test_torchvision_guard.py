"""Each in a process of its own: torchvision can be imported for the first time only once."""

import importlib.util
import subprocess
import sys

import pytest


def run(program: str) -> str:
    """The program's output; it must succeed and say nothing on stderr."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout.strip()


def test_diffusers_models_import_and_register_fake_is_restored():
    program = """
import torch
before = torch.library.register_fake
import trainables.torchvision_guard
from diffusers import AutoencoderKL
print(torch.library.register_fake is before, AutoencoderKL.__name__)
"""
    assert run(program) == "True AutoencoderKL"


def test_absent_torchvision_stays_absent():
    program = """
import sys, torch
sys.modules["torchvision"] = None
before = torch.library.register_fake
import trainables.torchvision_guard
print(torch.library.register_fake is before)
"""
    assert run(program) == "True"


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="needs torchvision")
def test_operators_that_exist_are_described_as_without_the_guard():
    program = """
import warnings
import torch
if not hasattr(torch.ops.torchvision, "nms"):
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
import trainables.torchvision_guard
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
warnings.simplefilter("ignore")  # torchvision's own description uses a deprecated name
with FakeTensorMode(shape_env=ShapeEnv()):
    kept = torch.ops.torchvision.nms(torch.empty(5, 4), torch.empty(5), 0.5)
print(kept.dtype)
"""
    assert run(program) == "torch.int64"
