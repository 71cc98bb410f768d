"""The JSON Schema of a search space, for editors: they complete keys and underline mistakes.

    raysweep schema > docs/schema/search-space.json

The schema is made from the specs that check a file; its descriptions are the docstrings below their fields. It cannot
express rules between keys, nor whether all points of a space are legal: both are checked when the file is loaded.
"""

from __future__ import annotations

import ast
import inspect
from functools import cache
from itertools import pairwise
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


def json_schema() -> Schema:
    """The schema of a search space (JSON Schema 2020-12)."""
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
        "description": "A trial with domains at its leaves, and how it is searched: docs/reference/search_spaces.md.",
        "$defs": {name: _tidy(definition) for name, definition in sorted(definitions.items())},
    }


def trial_definitions(trial: Schema, definitions: dict[str, Schema]) -> dict[str, Schema]:
    """Everything below `trial`, where each value may also be a domain."""
    searched: dict[str, Schema] = {}

    def visit(name: str, definition: Schema) -> None:
        searched[name] = dict(definition)
        searched[name]["properties"] = {
            key: value if key == "kind" else _searched(value) for key, value in definition.get("properties", {}).items()
        }
        for below in _references(definition):
            if below not in searched:
                visit(below, definitions[below])

    visit("Trial", trial)
    return searched


def _searched(value: Schema) -> Schema:
    """A value, or a domain of such values."""
    plain = {key: part for key, part in value.items() if key not in ("default", "title")}
    default = {"default": plain, "choice": {"type": "array", "items": plain, "minItems": 1}}
    forms = [plain, _domain("choice", "one of these", default["choice"], plain)]
    if _numeric(plain):
        pair = {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}
        forms += [_domain(kind, text, pair, {"type": "number"}) for kind, text in _RANGES.items()]
    return {"anyOf": forms} | ({"default": value["default"]} if "default" in value else {})


def _domain(kind: str, text: str, values: Schema, default: Schema) -> Schema:
    properties = {
        kind: values | {"description": text},
        "default": default | {"description": "the value of rows that give none"},
    }
    return {"type": "object", "properties": properties, "required": [kind], "additionalProperties": False}


def _numeric(value: Schema) -> bool:
    members = [*value.get("anyOf", []), *value.get("oneOf", [])]
    return value.get("type") in ("integer", "number") or any(map(_numeric, members))


def _references(node: Any) -> list[str]:
    if isinstance(node, list):
        return [name for item in node for name in _references(item)]
    if not isinstance(node, dict):
        return []
    own = [node["$ref"].rpartition("/")[2]] if isinstance(node.get("$ref"), str) else []
    return own + [name for value in node.values() for name in _references(value)]


def _describe(definition: Schema, model: type[BaseModel]) -> None:
    for name, field in model.model_fields.items():
        key = field.alias or name
        if text := _attribute_docstrings(model).get(name):
            definition["properties"][key] = definition["properties"][key] | {"description": text}


@cache
def _attribute_docstrings(model: type[BaseModel]) -> dict[str, str]:
    """The string literal below each field of a spec, by field; that of a base class where the spec has none.

    Pydantic's `use_attribute_docstrings` does the same, but at import, where it would take 80 ms in every command.
    """
    texts: dict[str, str] = {}
    for base in reversed([base for base in model.__mro__ if issubclass(base, Spec)]):
        (definition,) = ast.parse(inspect.getsource(base)).body
        assert isinstance(definition, ast.ClassDef)
        for field, below in pairwise(definition.body):
            match field, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    texts[name] = " ".join(text.split())
    return texts


def _models(model: type[BaseModel]) -> list[type[BaseModel]]:
    return [model, *(below for subclass in model.__subclasses__() for below in _models(subclass))]


def _tidy(node: Any) -> Any:
    """`node` without the titles that pydantic derives from names, and without defaults that are mappings or lists.

    Unions become `anyOf`, because `kind` already distinguishes their members.
    """
    if isinstance(node, list):
        return [_tidy(item) for item in node]
    if not isinstance(node, dict):
        return node
    drop = {"discriminator", "title"} | ({"default"} if isinstance(node.get("default"), dict | list) else set())
    kept = {"anyOf" if key == "oneOf" else key: value for key, value in node.items() if key not in drop}
    if "const" in kept.get("properties", {}).get("kind", {}) and "eta" not in kept["properties"]:
        kept["required"] = sorted({*kept.get("required", []), "kind"})
    return {
        key: {name: _tidy(item) for name, item in value.items()} if key == "properties" else _tidy(value)
        for key, value in kept.items()
    }
