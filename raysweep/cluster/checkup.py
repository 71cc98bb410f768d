"""Whether a running cluster is fit for sweeps: what was found, and a remedy for each fault."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.table import Table

from raysweep.cluster.connection import connected, gist
from raysweep.space.launch import Launch
from raysweep.store.files import Files
from raysweep.uris import public

RETRY_LIMIT_S = 90.0  # of every question
CLOCKS_S = 1.0  # that may differ: a lease lasts longer, and file times are compared
SLOW = {"GPU": 5e9, "CPU": 5e7}  # bytes/s of an all-reduce, below which the network is no match for the nodes
SIGNS = {"fine": "[green]fine[/]", "wrong": "[red]wrong[/]", "note": "[yellow]note[/]"}
CODE = "ray up again: it copies the code and runs setup_commands on every node"
OPEN_AUTH = "RAY_AUTH_MODE=token in every `ray start` line, ~/.ray/auth_token on every node: docs/how-to/cluster.md"
NOT_SHARED = "--storage on a filesystem that all nodes mount (NFS, Lustre), or s3://…"

Nodes = Mapping[str, Any]  # address -> the actor there


class Check(NamedTuple):
    """One line of the table."""

    name: str
    state: Literal["fine", "wrong", "note"]
    found: str
    remedy: str = ""


def examine(address: str, storage: str) -> list[Check]:
    """Look at all nodes of the cluster at `address`, which are to share `storage`.

    Raises:
        SweepError: there is no cluster at that address.
        UserError: `storage` is no place to write to.
    """
    files = Files(storage)
    files.check_writable()
    with connected(Launch(workers=1), address):
        alive = {node["NodeManagerAddress"]: node for node in ray.nodes() if node["Alive"]}
        nodes = {place: _actor(node) for place, node in alive.items()}
        seen, silent = _answers({place: actor.look.remote() for place, actor in nodes.items()})
        nodes = {place: actor for place, actor in nodes.items() if place in seen}
        checks = list(_of_nodes(seen, silent))
        if nodes:
            checks += [_clocks(nodes), *_storage(nodes, files), _network(nodes, seen)]
        return checks


def table(checks: list[Check]) -> Table:
    """For people."""
    shown = Table()
    for column in ("check", "", "found", "remedy"):
        shown.add_column(column, overflow="fold")
    for check in checks:
        shown.add_row(check.name, SIGNS[check.state], check.found, check.remedy)
    return shown


def _actor(node: Mapping[str, Any]) -> Any:
    from raysweep.cluster.node import Node  # brings in torch, which only nodes need

    here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    gpus = 1 if node["Resources"].get("GPU") else 0
    return ray.remote(Node).options(num_cpus=0, num_gpus=gpus, scheduling_strategy=here).remote()


def _answers(asked: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """What each node said, and why others did not."""
    until, told, silent = time.monotonic() + RETRY_LIMIT_S, {}, {}
    for place, question in asked.items():
        try:
            told[place] = ray.get(question, timeout=max(1.0, until - time.monotonic()))
        except GetTimeoutError:
            silent[place] = "said nothing; a sweep may hold all its GPUs"
        except RayError as error:
            silent[place] = gist(error)
    return told, silent


def _of_nodes(seen: Mapping[str, Any], silent: Mapping[str, str]) -> Iterator[Check]:
    count = f"{len(seen)} of {len(seen) + len(silent)} answer"
    if silent:
        told = "; ".join(f"{place}: {why}" for place, why in silent.items())
        yield Check("nodes", "wrong", f"{count}; {told}", "ray status, and the logs that it names")
    else:
        yield Check("nodes", "fine", f"{count}: {', '.join(seen)}")
    if not seen:
        return
    doors = [place for place, node in seen.items() if node["auth"] != "token"]
    yield _all("token", doors, "on", "not on", OPEN_AUTH)
    for name in ("python", "ray", "torch", "raysweep"):
        remedy = CODE if name == "raysweep" else "pip install -c constraints.txt on every node, then ray up again"
        yield _same(name, {place: node["versions"][name] for place, node in seen.items()}, remedy)
    gpus = {place: node for place, node in seen.items() if node["versions"]["driver"] != "none"}
    if gpus:
        kinds = {place: ", ".join(node["gpus"]) or "none that torch can use" for place, node in gpus.items()}
        yield _same("GPU", kinds, "nodes of one kind: the slowest of a lane sets its pace")
        drivers = {place: node["versions"]["driver"] for place, node in gpus.items()}
        yield _same("driver", drivers, "one image for all nodes")
    else:
        yield Check("GPU", "note", "none", "sweeps run on CPUs: --profile laptop")
    lacking = [place for place, node in seen.items() if not node["weights"]]
    if lacking:
        grave: Literal["note", "wrong"] = "note" if len(lacking) == len(seen) else "wrong"
        remedy = "how to get them: docs/reference/search_spaces.md#probe; without them probe.detector: effnet_lite0"
        yield Check("detector weights", grave, f"missing on {_places(lacking, seen)}", remedy)
    else:
        yield Check("detector weights", "fine", "there")


def _clocks(nodes: Nodes) -> Check:
    offsets = {}
    for place, actor in nodes.items():
        asked = time.time()
        with contextlib.suppress(RayError):
            theirs = ray.get(actor.now.remote(), timeout=RETRY_LIMIT_S)
            offsets[place] = theirs - (asked + time.time()) / 2
    spread = max(offsets.values(), default=0.0) - min(offsets.values(), default=0.0)
    if spread > CLOCKS_S:
        worst = max(offsets, key=lambda place: abs(offsets[place]))
        return Check("clocks", "wrong", f"{spread:.1f} s apart, {worst} the most", "chrony or ntp on every node")
    return Check("clocks", "fine", f"{spread * 1e3:.0f} ms apart")


def _storage(nodes: Nodes, files: Files) -> Iterator[Check]:
    """One writes, all read; one replaces it, all read the new; all create, one succeeds."""
    folder = f"checkups/{uuid.uuid4().hex[:12]}"
    place, actors = (files.uri, files.mark), dict(nodes)
    writer = next(iter(actors.values()))
    try:
        seen = {}
        for content in (b"first", b"second"):
            ray.get(writer.write.remote(*place, f"{folder}/file", content), timeout=RETRY_LIMIT_S)
            asked = {at: actor.read.remote(*place, f"{folder}/file") for at, actor in actors.items()}
            seen[content], silent = _answers(asked)
            wrong = [at for at, read in seen[content].items() if read != content]
            if wrong or silent:
                why = "; ".join(silent.values())
                found = f"{public(files.uri)}: {', '.join([*wrong, *silent])} did not see what was written {why}"
                yield Check("storage", "wrong", found.strip(), NOT_SHARED)
                return
        yield Check("storage", "fine", f"{public(files.uri)}: all nodes see what one writes, and replaces")
        asked = {at: actor.create.remote(*place, f"{folder}/one", at.encode()) for at, actor in actors.items()}
        made, silent = _answers(asked)
        winners = [at for at, won in made.items() if won]
        if len(winners) == 1 and not silent:
            yield Check("exclusive create", "fine", f"one of {len(made)} made the file")
        else:
            found = f"{len(winners)} nodes made the same file; {'; '.join(silent.values())}".rstrip("; ")
            yield Check("exclusive create", "wrong", found, "a filesystem with hard links, or NFS version 4")
    except (RayError, OSError) as error:
        yield Check("storage", "wrong", gist(error), NOT_SHARED)
    finally:
        with contextlib.suppress(OSError):
            files.delete_folder(folder)


def _network(nodes: Nodes, seen: Mapping[str, Any]) -> Check:
    """An all-reduce between the nodes with GPUs, or else between all."""
    chosen = {place: actor for place, actor in nodes.items() if seen[place]["gpus"]} or dict(nodes)
    kind = "GPU" if any(seen[place]["gpus"] for place in chosen) else "CPU"
    if len(chosen) < 2:
        return Check("all-reduce", "note", "one node alone")
    meeting = ray.get(next(iter(chosen.values())).rendezvous.remote(), timeout=RETRY_LIMIT_S)
    asked = {
        place: actor.all_reduce.remote(meeting, rank, len(chosen), RETRY_LIMIT_S / 3)
        for rank, (place, actor) in enumerate(chosen.items())
    }
    rates, silent = _answers(asked)
    advice = "GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME, open ports between nodes; on AWS, EFA: docs/how-to/cluster.md"
    if silent:
        return Check("all-reduce", "wrong", "; ".join(f"{place}: {why}" for place, why in silent.items()), advice)
    slowest = min(rates.values())
    found = f"{slowest / 1e9:.2f} GB/s between {len(chosen)} nodes, by {'NCCL' if kind == 'GPU' else 'gloo'}"
    return Check("all-reduce", "wrong" if slowest < SLOW[kind] else "fine", found, advice * (slowest < SLOW[kind]))


def _same(name: str, values: Mapping[str, str], remedy: str) -> Check:
    groups = defaultdict(list)
    for place, value in values.items():
        groups[value].append(place)
    if len(groups) == 1:
        return Check(name, "fine", next(iter(groups)))
    told = "; ".join(f"{value} on {', '.join(places)}" for value, places in groups.items())
    return Check(name, "wrong", told, remedy)


def _all(name: str, bad: list[str], good: str, told: str, remedy: str) -> Check:
    return Check(name, "wrong", f"{told}: {', '.join(bad)}", remedy) if bad else Check(name, "fine", good)


def _places(places: list[str], seen: Mapping[str, Any]) -> str:
    return "all nodes" if len(places) == len(seen) else ", ".join(places)
