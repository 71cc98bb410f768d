"""Golden files of the reference repositories, run through our public names.

`python tests/parity.py FILE.safetensors…` prints one JSON line for each checked output, {"file", "output",
"max_abs_err", "max_ref"}, and {"file", "skipped": reason} for what it has no check for yet. What a file holds is told
by its metadata (key `case`, JSON) and by its tensors' names, never by its own name.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

# So that it runs from a checkout, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from trainables import backbones, sampling
from trainables.interpolant import interpolate

REPOSITORIES = {"sihyun-yu/REPA": "repa", "willisma/SiT": "sit"}  # as `source` begins -> name of the reference
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

    def model(self) -> Any:
        """The file's network as ours, or None where it has none that we know."""
        repository = self.about.get("source", "").split(" ")[0]
        if repository not in REPOSITORIES or not self.part("model."):
            return None
        source = REPOSITORIES[repository]
        return backbones.from_reference(self.part("model."), source, **self.about["config"]).eval()


def network_outputs(case: Case, model: Any) -> Outputs:
    """`out.v`, `hidden.k`, `out.xt` and the diffusion loss of the images, as far as the file's inputs lead."""
    given = case.part("in.")
    if "t" not in given:
        return {}
    found: Outputs = {}
    x_t, target = given.get("xt"), None
    if x_t is None:
        x_t, target = interpolate(given["latents"], given["noise"], given["t"])
        found["out.xt"] = x_t
    # Files on the reference's own clock hold its times and velocities; our names speak ours.
    own_time = "own time" in case.about.get("convention", "")
    t, sign = (1 - given["t"], -1) if own_time else (given["t"], 1)
    velocity, hidden = model(x_t, t, given["y"], taps=range(1, model.depth + 1))
    found["out.v"] = sign * velocity
    found |= {f"hidden.{block}": state for block, state in hidden.items()}
    if target is not None:
        found["loss.denoise_per_sample"] = (velocity - target).square().mean(dim=(1, 2, 3))
    return found


def sampler_outputs(case: Case, model: Any) -> Outputs:
    """Latents by each sampler, all from one noise."""
    given = case.part("in.")
    if "ode_steps" not in case.about:
        return {}

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return model(x, t, given["y"]).velocity

    noise, ode_steps, sde_steps = given["noise"], case.about["ode_steps"], case.about["sde_steps"]
    return {
        "out.euler_ode": sampling.euler(velocity, noise, ode_steps),
        "out.heun_ode": sampling.heun(velocity, noise, ode_steps),
        "out.euler_maruyama_sde": sampling.euler_maruyama(velocity, noise, sde_steps, draws=given["sde_draws"]),
    }


CHECKS: tuple[Callable[[Case, Any], Outputs], ...] = (network_outputs, sampler_outputs)


@torch.no_grad()
def check(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of one file; `max_abs_err` and `max_ref` are maxima over the tensor, in its own units."""
    case = Case.load(path)
    model = case.model()
    if model is None:
        yield {"file": str(path), "skipped": f"no check yet for {case.about.get('source', 'a file without a source')}"}
        return
    found: Outputs = {}
    for outputs in CHECKS:
        found |= outputs(case, model)
    unchecked = []
    for name, reference in case.tensors.items():
        if not name.startswith(CHECKED):
            continue
        if name not in found:
            unchecked.append(name)
            continue
        error = (found[name].double() - reference.double()).abs().max().item()
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
