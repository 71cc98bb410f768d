"""What steps, probes and checkpoints cost, estimated from sizes alone. Nothing is measured, and torch is not needed.

The scale comes from the speeds that the paper reports (Self-Transcendence, section 4.5) for SiT-B/2 at batch 256 on
eight A800 GPUs: 9.28 steps/s plain, 6.69 guided, 8.70 with vae_align, 8.49 with repa. The time for other backbones and
batch sizes is taken to be proportional to their multiply-adds.
"""

from __future__ import annotations

from functools import lru_cache

from trainables.config import BACKBONES, ProbeSpec, Recipe, Run
from trainables.datasets import catalog

PLAIN_STEPS_PER_S, GPUS, BATCH = 9.28, 8, 256
# The time of a step divided by that of a plain step. The paper does not time the last three: sra adds one forward pass
# of its EMA network; layersync and dispersive only compare hidden states that exist anyway.
_SLOWER = {
    "none": 1.0,
    "self_guided": 9.28 / 6.69,
    "vae_align": 9.28 / 8.70,
    "repa": 9.28 / 8.49,
    "sra": 4 / 3,
    "layersync": 1.0,
    "dispersive": 1.0,
}
ASSUMED = (
    "GPU-hours at the paper's speed (SiT-B/2, batch 256: 9.28 plain steps/s on eight A800, 6.69 guided), scaled to "
    "other backbones and batches by multiply-adds",
    "a training step costs as much as three forward passes; a checkpoint is weights, EMA and two moments in float32",
)


@lru_cache
def multiply_adds(backbone: str, data: str) -> float:
    """Multiply-adds of one forward pass for one image; within 1% of `trainables.backbones.costs`."""
    size, (channels, height, width) = BACKBONES[backbone], catalog.find(data).latent_shape
    tokens = (height // size.patch) * (width // size.patch)
    blocks = size.depth * (12 * tokens * size.width**2 + 2 * tokens**2 * size.width)
    patches = 2 * tokens * channels * size.patch**2 * size.width  # embedding and output
    return blocks + patches + (6 * size.depth + 3) * size.width**2  # last: adaLN and time embedding, once per image


@lru_cache
def parameters(backbone: str, data: str) -> float:
    """Trained parameters; within 1% of `trainables.backbones.costs`."""
    size, known = BACKBONES[backbone], catalog.find(data)
    channels, _, _ = known.latent_shape
    outside_blocks = known.num_classes + 2 * channels * size.patch**2 + 262  # labels, patch embedding and output, time
    return (18 * size.depth + 3) * size.width**2 + size.width * (15 * size.depth + outside_blocks)


def checkpoint_gib(recipe: Recipe) -> float:
    """Size in GiB of one checkpoint: weights, EMA weights and two optimizer moments in float32."""
    return 4 * 4 * parameters(recipe.backbone, recipe.data) / 2**30


def step_gpu_s(run: Run, kind: str) -> float:
    """GPU-seconds of one step of `run` with a method's term of that kind."""
    return _SLOWER.get(kind, 1.0) * _scale(run) * run.batch_size / BATCH * GPUS / PLAIN_STEPS_PER_S


def probe_gpu_s(recipe: Recipe, spec: ProbeSpec) -> float:
    """GPU-seconds of one probe: its samples' forward passes, each a third of a training step's work for one image."""
    passes = spec.samples * spec.steps * (2 if spec.sampler == "heun" else 1) * (2 if spec.guidance_scale != 1 else 1)
    return passes / 3 / BATCH * _scale(recipe) * GPUS / PLAIN_STEPS_PER_S


def _scale(recipe: Recipe) -> float:
    return multiply_adds(recipe.backbone, recipe.data) / multiply_adds("SiT-B/2", "imagenet256")
