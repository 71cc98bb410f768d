"""Golden files of the reference repositories, run through our public names.

`python tests/parity.py FILE.safetensors…` prints one JSON line for each checked output, {"file", "output",
"max_abs_err", "max_ref"}, and {"file", "skipped": reason} for what it has no check for yet. What a file holds is told
by its metadata (key `case`, JSON) and by its tensors' names, never by its own name.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

# So that it runs from a checkout, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from trainables import backbones, methods, sampling
from trainables.interpolant import interpolate

REPOSITORIES = {  # as `source` begins -> name of the reference
    "sihyun-yu/REPA": "repa",
    "willisma/SiT": "sit",
    "hustvl/LightningDiT": "lightningdit",
    "vvvvvjdy/SRA": "sra",
    "vita-epfl/LayerSync": "layersync",
}
CHECKED = ("out.", "hidden.", "loss.")
Outputs = dict[str, Tensor]


class Case(NamedTuple):
    """One golden file: how to read it, and its tensors."""

    about: dict[str, Any]
    tensors: dict[str, Tensor]

    @classmethod
    def load(cls, path: Path) -> Case:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("case", "{}"))
            return cls(about, {name: file.get_tensor(name) for name in file.keys()})

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors below `prefix`, named without it."""
        return {name.removeprefix(prefix): t for name, t in self.tensors.items() if name.startswith(prefix)}

    def network(self, *prefixes: str) -> Any:
        """The network below the first of `prefixes` that the file has, as ours; None where there is none we know."""
        repository = self.about.get("source", "").split(" ")[0]
        weights = next((tensors for prefix in prefixes if (tensors := self.part(prefix))), None)
        if repository not in REPOSITORIES or not weights:
            return None
        return backbones.from_reference(weights, REPOSITORIES[repository], **self.about.get("config", {})).eval()

    @property
    def own_time(self) -> bool:
        """Whether its times and velocities are on the reference's own clock, t=0 noise, and not on ours."""
        return "own time" in self.about.get("convention", "")


class Seen(NamedTuple):
    """A case run through its network, all on our clock."""

    batch: methods.Batch
    velocity: Tensor
    hidden: dict[int, Tensor]


def batch_of(given: dict[str, Tensor], t: Tensor) -> methods.Batch:
    """The file's inputs as a method sees them; nothing where it has none."""
    nothing = torch.empty(0)
    latents, noise = given.get("latents", nothing), given.get("noise", nothing)
    x_t, velocity = (given["xt"], nothing) if "xt" in given else interpolate(latents, noise, t)
    return methods.Batch(
        latents=latents,
        noise=noise,
        x_t=x_t,
        velocity=velocity,
        t=t,
        labels=given["y"],
        y=given["y"],
        offset=given.get("t_offset_uniform", nothing),
        images=nothing,  # the encoder of this file's target knows what it would see
    )


def seen(case: Case) -> Seen | None:
    """None where the file has no network that we know, or no inputs for one."""
    given, model = case.part("in."), case.network("model.", "student.")
    enough = {"t", "y"} <= set(given) and ("xt" in given or {"latents", "noise"} <= set(given))
    if model is None or not enough:
        return None
    batch = batch_of(given, 1 - given["t"] if case.own_time else given["t"])
    velocity, hidden = model(batch.x_t, batch.t, batch.y, taps=range(1, model.depth + 1))
    return Seen(batch, velocity, hidden)


# --- checks: each computes what the file's inputs lead to, and nothing where they do not ------------------------------


def network_outputs(case: Case) -> Outputs:
    """`out.v`, `hidden.k`, `out.xt` and the diffusion loss of the images."""
    if (run := seen(case)) is None:
        return {}
    batch = run.batch
    tensors = {"out.v": -run.velocity if case.own_time else run.velocity, "out.xt": batch.x_t}
    tensors |= {f"hidden.{block}": state for block, state in run.hidden.items()}
    if batch.velocity.numel():
        tensors["loss.denoise_per_sample"] = (run.velocity - batch.velocity).square().mean(dim=(1, 2, 3))
    return tensors


def sampler_outputs(case: Case) -> Outputs:
    """Latents by each sampler, all from one noise."""
    given, model = case.part("in."), case.network("model.")
    if model is None or "ode_steps" not in case.about:
        return {}

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return model(x, t, given["y"]).velocity

    noise, ode_steps, sde_steps = given["noise"], case.about["ode_steps"], case.about["sde_steps"]
    return {
        "out.euler_ode": sampling.euler(velocity, noise, ode_steps),
        "out.heun_ode": sampling.heun(velocity, noise, ode_steps),
        "out.euler_maruyama_sde": sampling.euler_maruyama(velocity, noise, sde_steps, draws=given["sde_draws"]),
    }


@dataclass(frozen=True)
class GivenTarget:
    """An encoder that has already answered."""

    target: Tensor

    @property
    def width(self) -> int:
        return self.target.shape[-1]

    def __call__(self, images: Tensor) -> Tensor:
        return self.target


def repa_outputs(case: Case) -> Outputs:
    """The projection of one block, and its loss against the given target."""
    weights, block = case.part("model.projectors.0."), case.about.get("encoder_depth")
    if block is None or not weights or (run := seen(case)) is None:
        return {}
    hidden_width, width = weights["0.weight"].shape
    target = case.tensors.get("in.repa_target", torch.empty(0, len(weights["4.bias"])))
    method = methods.create(
        "repa",
        width=width,
        block=block,
        encoder=GivenTarget(target),
        projector_width=hidden_width,
        generator=torch.Generator(),
    )
    method.projector.load_state_dict(weights)
    tensors = {"out.repa_projection": method.projector(run.hidden[block])}
    return tensors | ({"loss.repa": method(run.hidden, run.batch)} if len(target) else {})


def dispersive_outputs(case: Case) -> Outputs:
    """The loss of given states: a file without a network."""
    if "loss.dispersive" not in case.tensors:
        return {}
    hidden = {1: case.tensors["in.hidden"]}
    return {"loss.dispersive": methods.create("dispersive", block=1)(hidden, None)}


def layersync_outputs(case: Case) -> Outputs:
    """One pair of blocks."""
    if "deep_layer" not in case.about or (run := seen(case)) is None:
        return {}
    pair = (case.about["deep_layer"], case.about["shallow_layer"])
    return {"loss.layersync_mean": methods.create("layersync", layers=(pair,))(run.hidden, run.batch)}


def sra_outputs(case: Case) -> Outputs:
    """The student's block through its head, against the teacher's at less noise."""
    teacher, head = case.network("teacher."), case.part("student.ap_head.")
    if teacher is None or not head or (run := seen(case)) is None:
        return {}
    method = methods.create(
        "sra",
        width=teacher.width,
        layers=(case.about["teacher_layer"], case.about["student_layer"]),
        t_offset=case.about["t_max"],
        generator=torch.Generator(),
    )
    layers = {"linear1": "0", "linear2": "2"}  # theirs -> ours
    method.head.load_state_dict({f"{layers[(parts := name.split('.'))[0]]}.{parts[1]}": t for name, t in head.items()})
    view = methods.View(average=teacher, path="linear")
    return {"loss.sra": method(run.hidden, run.batch, view)}


CHECKS: tuple[Callable[[Case], Outputs], ...] = (
    network_outputs,
    sampler_outputs,
    repa_outputs,
    dispersive_outputs,
    layersync_outputs,
    sra_outputs,
)


@torch.no_grad()
def check(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of one file; `max_abs_err` and `max_ref` are maxima over the tensor, in its own units."""
    case = Case.load(path)
    tensors: Outputs = {}
    for outputs in CHECKS:
        tensors |= outputs(case)
    if not tensors:
        yield {"file": str(path), "skipped": f"no check yet for {case.about.get('source', 'a file without a source')}"}
        return
    unchecked = []
    for name, reference in case.tensors.items():
        if not name.startswith(CHECKED):
            continue
        if name not in tensors:
            unchecked.append(name)
            continue
        error = (tensors[name].reshape(reference.shape).double() - reference.double()).abs().max().item()
        yield {"file": str(path), "output": name, "max_abs_err": error, "max_ref": reference.abs().max().item()}
    if unchecked:
        yield {"file": str(path), "skipped": f"no check yet for {', '.join(unchecked)}"}


def main(paths: list[str]) -> int:
    for path in paths:
        for row in check(Path(path)):
            print(json.dumps(row))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
