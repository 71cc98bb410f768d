"""What every spec is, and how a rule between keys is said to be broken."""

from __future__ import annotations

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
