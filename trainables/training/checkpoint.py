"""The state of a run at a step, as flat tensors in safetensors files; no pickle.

A *checkpoint* holds everything needed to continue: weights, EMA weights, method, optimizer. The EMA weights are a
separate file, the *snapshot*, which is all that a teacher or a probe needs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

SNAPSHOT, STATE = "snapshot.safetensors", "state.safetensors"
Tensors = dict[str, Tensor]


@dataclass
class Checkpoint:
    """State after `step` optimizer steps.

    Tensors have the names of the modules' state dicts. Names in `optimizer` begin with the moment: `exp_avg.<name>`.
    """

    step: int
    backbone: Tensors
    ema: Tensors
    method: Tensors = field(default_factory=dict)
    optimizer: Tensors = field(default_factory=dict)

    def copied(self) -> Checkpoint:
        """A copy in the host's memory, which training does not change."""
        parts = (self.backbone, self.ema, self.method, self.optimizer)
        copies = [{name: value.detach().to("cpu", copy=True) for name, value in part.items()} for part in parts]
        return Checkpoint(self.step, *copies)

    def save(self, folder: Path) -> None:
        """Write `snapshot.safetensors` and `state.safetensors` into an existing folder.

        Raises:
            OSError: the files cannot be written.
        """
        parts = {"backbone": self.backbone, "method": self.method, "optimizer": self.optimizer}
        state = {f"{part}/{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}
        try:
            save_file(_portable(self.ema), folder / SNAPSHOT)
            save_file(_portable(state), folder / STATE)
        except SafetensorError as error:  # safetensors wraps errors of the filesystem in its own
            raise OSError(f"{folder}: {error}") from error

    @classmethod
    def load(cls, folder: Path, step: int) -> Checkpoint:
        """Read what `save` wrote."""
        parts: dict[str, Tensors] = {"backbone": {}, "method": {}, "optimizer": {}}
        for name, tensor in load_file(folder / STATE).items():
            part, _, rest = name.partition("/")
            parts[part][rest] = tensor
        return cls(step, ema=load_file(folder / SNAPSHOT), **parts)


def load_weights(folder: Path, weights: str = "ema") -> Tensors:
    """The backbone's weights of a saved checkpoint: `ema` (the snapshot) or `raw`."""
    return load_file(folder / SNAPSHOT) if weights == "ema" else Checkpoint.load(folder, 0).backbone


def _portable(tensors: Tensors) -> Tensors:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
