"""The losses that are added to the diffusion loss, one file each: the block, the target, the projector, the distance.

A method is a module with `taps` (the student blocks that it reads) and `forward(hidden, batch, view)`, which returns an
unweighted scalar. `hidden` maps a block to its state (B, T, D); `view` gives access to the EMA network. The weight is
applied in `training_step.py`.
"""

from __future__ import annotations

from typing import Any

from trainables.methods.base import Batch, Method, View
from trainables.methods.dispersive import Dispersive
from trainables.methods.layersync import LayerSync
from trainables.methods.none import NoMethod
from trainables.methods.repa import Repa
from trainables.methods.self_guided import Guide, SelfGuided, Teacher
from trainables.methods.sra import Sra
from trainables.methods.vae_align import VaeAlign

METHODS: dict[str, type[Method]] = {
    "none": NoMethod,
    "vae_align": VaeAlign,
    "self_guided": SelfGuided,
    "repa": Repa,
    "dispersive": Dispersive,
    "layersync": LayerSync,
    "sra": Sra,
}


def create(kind: str, **options: Any) -> Method:
    """The method named `kind`; `options` are arguments of its constructor.

    Raises:
        ValueError: there is no such method.
    """
    if kind not in METHODS:
        raise ValueError(f"no method '{kind}'; known: {', '.join(METHODS)}")
    return METHODS[kind](**options)


__all__ = ["METHODS", "Batch", "Guide", "Method", "Teacher", "View", "create"]
