"""Checks a file that starts a cluster before it is used: YAML of `ray up` or KubeRay, or a script for Slurm."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from raysweep.errors import UserError

logging.getLogger("ray.autoscaler").setLevel(logging.WARNING)
UNSET = re.compile(r"SET_[A-Z_]+")
KUBERAY = ("RayCluster", "RayJob")


def faults(file: Path) -> list[str]:
    """What has to be changed before the file can be used. One line each: where, what, and what would be right.

    Raises:
        UserError: the file cannot be read, or does not start a cluster.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read ({getattr(error, 'strerror', None) or 'no text'})") from None
    messages = [f"{file}:{line}: {message}" for line, message in _unset(text)]
    if text.startswith("#!"):
        return messages
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{file}:{mark.line + 1}" if mark else str(file)
        raise UserError(f"{where}: not YAML: {getattr(error, 'problem', None) or 'unreadable'}") from None
    if isinstance(tree, dict) and tree.get("kind") in KUBERAY:
        return messages + [f"{file}: {message}" for message in _kuberay(tree)]
    if not isinstance(tree, dict) or "provider" not in tree:
        raise UserError(
            f"{file}: neither a file for Ray (provider: …) or KubeRay (kind: RayCluster or RayJob), nor a script"
        )
    return messages + [f"{file}: {message}" for message in _ray(tree)]


def _unset(text: str) -> Iterator[tuple[int, str]]:
    """Placeholders that the user has not replaced: the number of the line, and a message with the key and the comment
    beside it."""
    for number, line in enumerate(text.splitlines(), 1):
        content, _, comment = re.sub(r"(^|\s)#(?!SBATCH)", "\0", line).partition("\0")
        for name in dict.fromkeys(UNSET.findall(content)):
            keys = re.findall(r"[\w-]+(?=\s*[:=])", content[: content.index(name)])
            message = f"{keys[-1]} is still {name}" if keys else f"{name} is not set"
            yield number, message + (f"; {comment.strip()}" if comment.strip() else "")


def _ray(tree: dict[str, Any]) -> Iterator[str]:
    try:
        validate_config(prepare_config(copy.deepcopy(tree)))
    except Exception as error:  # of Ray, or of its JSON schema, whose errors have a path
        where = ".".join(map(str, getattr(error, "absolute_path", ())))
        message = str(getattr(error, "message", error)).strip() or type(error).__name__
        yield (f"{where}: " if where else "") + message.splitlines()[0]
        return
    if tree["provider"].get("type") == "aws":
        for name, kind in (tree.get("available_node_types") or {"": {}}).items():
            node = kind.get("node_config") or {}
            if not (node.get("SecurityGroupIds") or node.get("NetworkInterfaces")):
                where = f"available_node_types.{name}.node_config.SecurityGroupIds"
                yield f"{where}: absent, and Ray's own group opens ssh to the whole internet; give one of yours"
    for part in ("head_start_ray_commands", "worker_start_ray_commands"):
        starts = [line for line in tree.get(part, []) if "ray start" in line]
        if not starts or any("RAY_AUTH_MODE=token" not in line for line in starts):
            yield f"{part}: `ray start` without RAY_AUTH_MODE=token, so that anyone who reaches its ports can run code"
    yield from _local_files(tree)


def _local_files(tree: Mapping[str, Any]) -> Iterator[str]:
    mounts = tree.get("file_mounts") or {}
    if not any(str(place).endswith(".ray/auth_token") for place in mounts):
        yield "file_mounts: lacks ~/.ray/auth_token: ~/.ray/auth_token; without it no worker can join"
    for place, source in mounts.items():
        if not Path(str(source)).expanduser().exists():
            token = str(place).endswith(".ray/auth_token")
            yield f"file_mounts.{place}: there is no {source}" + ("; ray get-auth-token --generate" if token else "")
    key = (tree.get("auth") or {}).get("ssh_private_key")
    if key and not UNSET.search(str(key)) and not Path(str(key)).expanduser().is_file():
        yield f"auth.ssh_private_key: there is no {key}; give the file of a private key"


def _kuberay(tree: Mapping[str, Any]) -> Iterator[str]:
    spec = tree.get("spec")
    cluster = spec.get("rayClusterSpec") if tree["kind"] == "RayJob" and isinstance(spec, Mapping) else spec
    if not isinstance(cluster, Mapping):
        yield "spec: describes no cluster; docs/how-to/cluster.md has one that works"
    elif (cluster.get("authOptions") or {}).get("mode") != "token":
        yield "authOptions: {mode: token} is absent, so that anyone who reaches the head can run code"
