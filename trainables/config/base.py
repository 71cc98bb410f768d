"""The base of all specs, and the error for a broken rule between keys."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Steps = Annotated[int, Field(gt=0)]


class Spec(BaseModel):
    """The base of all specs: immutable; unknown keys, NaN and infinity are refused. The string below a field describes
    it in the JSON Schema."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class WrongKey(ValueError):
    """A rule between several keys is broken. `key` is the key to change, as a dotted path from the spec that raises
    this error."""

    def __init__(self, key: str, message: str):
        super().__init__(message)
        self.key = key
