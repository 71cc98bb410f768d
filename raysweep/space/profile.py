"""Profiles: one search space at the size of the machines that run it. A profile changes sizes, not what is compared."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import Any

from raysweep.space import domains, yaml_file
from trainables.config import ProbeSpec, Trial

PROFILES = ("cluster", "laptop", "smoke")


def _profile(name: str) -> dict[str, Any]:
    text = resources.files("raysweep.space").joinpath("profiles", f"{name}.yaml").read_text(encoding="utf-8")
    profile: dict[str, Any] = yaml_file.parse(text)
    return profile


def merge(file: dict[str, Any], name: str) -> dict[str, Any]:
    """The content of a search space with profile `name` applied.

    The profile wins over the file's plain values in `trial` and `probe`. The file's domains stay, except that backbones
    in them are replaced by their small counterparts. The file's `launch` wins over the profile's.
    """
    profile = _profile(name)
    merged = {**file, "steps_divisor": profile["steps_divisor"]}
    probe, trial = file.get("probe", {}), file.get("trial", {})
    if isinstance(probe, dict):
        merged["published_samples"] = probe.get("samples", ProbeSpec().samples)
        merged["probe"] = _overlay(probe, profile.get("probe", {}))
        if isinstance(families := probe.get("families"), dict):
            merged["probe"]["families"] = {
                name: {key: value for key, value in own.items() if key not in profile.get("probe", {})}
                if isinstance(own, dict)
                else own
                for name, own in families.items()
            }
    if isinstance(trial, dict):
        resized = profile.get("backbones", {})
        written = trial.get("backbone", Trial.model_fields["backbone"].default)
        merged["trial"] = _overlay(trial, profile.get("trial", {})) | {"backbone": _resize(written, resized)}
        merged["enqueue"] = _resize(file.get("enqueue", []), resized)
    if isinstance(file.get("launch", {}), dict):
        merged["launch"] = {**profile["launch"], **file.get("launch", {})}
    return merged


def _resize(node: Any, resized: Mapping[str, str]) -> Any:
    """`node` with the names of backbones replaced by their counterparts at the profile's size."""
    if isinstance(node, dict):
        return {key: _resize(value, resized) for key, value in node.items()}
    if isinstance(node, list):
        values = [_resize(value, resized) for value in node]
        # Two backbones may have the same counterpart, and a choice may not have an option twice.
        return [v for position, v in enumerate(values) if not isinstance(v, str) or v not in values[:position]]
    return resized.get(node, node) if isinstance(node, str) else node


def _overlay(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`below` with the values of `above`, except where `below` has a domain."""
    result = dict(below)
    for key, value in above.items():
        old = below.get(key)
        if isinstance(old, dict) and any(kind in old for kind in domains.KINDS):
            continue
        result[key] = _overlay(old or {}, value) if isinstance(value, dict) and isinstance(old, dict | None) else value
    return result
