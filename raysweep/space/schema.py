"""The JSON Schema of a search space, for editors: completion, and a line under what is wrong while it is written.

    raysweep schema > docs/schema/search-space.json

It is made from the specs that check a file, and their comments are its descriptions. What it cannot say (rules between
keys, corners of a space) is said when the file is loaded.
"""

from __future__ import annotations

import inspect
import io
import textwrap
import tokenize
from functools import cache
from typing import Any

from pydantic import BaseModel

from raysweep.space.space import SpaceFile
from trainables.config import Spec, Trial

Schema = dict[str, Any]
OF_PROFILES = ("steps_divisor", "published_samples")
_RANGES = {
    "uniform": "evenly between two numbers",
    "log_uniform": "evenly in the logarithm between two numbers",
    "integers": "whole numbers from the first to the last",
}


def schema() -> Schema:
    """The schema (JSON Schema 2020-12)."""
    file, trial = SpaceFile.model_json_schema(), Trial.model_json_schema()
    definitions = file.pop("$defs") | trial.pop("$defs")
    for name in OF_PROFILES:
        del file["properties"][name]
    file["properties"]["trial"] = {"$ref": "#/$defs/Trial"}
    searched = trial_definitions(trial | {"title": "Trial"}, definitions)
    definitions |= searched
    for model in _models(Spec):
        if model.__name__ in definitions:
            _describe(definitions[model.__name__], model)
    _describe(file, SpaceFile)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "raysweep search space",
        **_tidy(file),
        "description": "A trial with domains at its leaves, and how it is searched: docs/search_spaces.md.",
        "$defs": {name: _tidy(definition) for name, definition in sorted(definitions.items())},
    }


def trial_definitions(trial: Schema, definitions: dict[str, Schema]) -> dict[str, Schema]:
    """Everything below `trial`, where each value may also be a domain."""
    found: dict[str, Schema] = {}

    def visit(name: str, definition: Schema) -> None:
        found[name] = dict(definition)
        found[name]["properties"] = {
            key: value if key == "kind" else _searched(value) for key, value in definition.get("properties", {}).items()
        }
        for below in _references(definition):
            if below not in found:
                visit(below, definitions[below])

    visit("Trial", trial)
    return found


def _searched(value: Schema) -> Schema:
    """A value, or a domain of such values."""
    plain = {key: part for key, part in value.items() if key not in ("default", "title")}
    default = {"default": plain, "choice": {"type": "array", "items": plain, "minItems": 1}}
    forms = [plain, _domain("choice", "one of these", default["choice"], plain)]
    if _numeric(plain):
        pair = {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}
        forms += [_domain(kind, told, pair, {"type": "number"}) for kind, told in _RANGES.items()]
    return {"anyOf": forms} | ({"default": value["default"]} if "default" in value else {})


def _domain(kind: str, told: str, values: Schema, default: Schema) -> Schema:
    properties = {kind: values | {"description": told}, "default": default | {"description": "of rows that do not say"}}
    return {"type": "object", "properties": properties, "required": [kind], "additionalProperties": False}


def _numeric(value: Schema) -> bool:
    members = [*value.get("anyOf", []), *value.get("oneOf", [])]
    return value.get("type") in ("integer", "number") or any(map(_numeric, members))


def _references(node: Any) -> list[str]:
    if isinstance(node, list):
        return [name for each in node for name in _references(each)]
    if not isinstance(node, dict):
        return []
    own = [node["$ref"].rpartition("/")[2]] if isinstance(node.get("$ref"), str) else []
    return own + [name for value in node.values() for name in _references(value)]


def _describe(definition: Schema, model: type[BaseModel]) -> None:
    for name, field in model.model_fields.items():
        key = field.alias or name
        if told := _comments(model).get(name):
            definition["properties"][key] = definition["properties"][key] | {"description": told}


@cache
def _comments(model: type[BaseModel]) -> dict[str, str]:
    """What the source says behind each field of a model and of those that it is made from."""
    found: dict[str, str] = {}
    for each in reversed([base for base in model.__mro__ if issubclass(base, Spec)]):
        names: dict[int, str] = {}
        for token in tokenize.generate_tokens(io.StringIO(textwrap.dedent(inspect.getsource(each))).readline):
            if token.type == tokenize.NAME and token.string in each.__annotations__ and token.start[1] == 4:
                names[token.start[0]] = token.string
            elif token.type == tokenize.COMMENT and token.start[0] in names:
                found[names[token.start[0]]] = token.string.lstrip("# ")
    return found


def _models(model: type[BaseModel]) -> list[type[BaseModel]]:
    return [model, *(below for each in model.__subclasses__() for below in _models(each))]


def _tidy(node: Any) -> Any:
    """Without the titles that pydantic makes of names, and defaults that are no single value; unions by any, as their
    members are told apart by `kind`."""
    if isinstance(node, list):
        return [_tidy(each) for each in node]
    if not isinstance(node, dict):
        return node
    drop = {"discriminator", "title"} | ({"default"} if isinstance(node.get("default"), dict | list) else set())
    kept = {"anyOf" if key == "oneOf" else key: value for key, value in node.items() if key not in drop}
    if "const" in kept.get("properties", {}).get("kind", {}) and "eta" not in kept["properties"]:
        kept["required"] = sorted({*kept.get("required", []), "kind"})
    return {
        key: {name: _tidy(each) for name, each in value.items()} if key == "properties" else _tidy(value)
        for key, value in kept.items()
    }
