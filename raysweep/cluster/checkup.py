"""Checks whether a running cluster is fit for sweeps, with a remedy for each fault."""

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

from raysweep.cluster.connection import connected, last_line
from raysweep.space.launch import Launch
from raysweep.store.files import Files
from trainables.redaction import public

ANSWER_S = 90.0  # how long a node may take to answer
CLOCKS_S = 1.0  # most by which the nodes' clocks may differ, because file times are compared
SLOW = {"GPU": 5e9, "CPU": 5e7}  # bytes/s of an all-reduce; below this, the network is too slow for the nodes
SIGNS = {"fine": "[green]fine[/]", "wrong": "[red]wrong[/]", "note": "[yellow]note[/]"}
CODE = "ray up again: it copies the code and runs setup_commands on every node"
OPEN_AUTH = "RAY_AUTH_MODE=token in every `ray start` line, ~/.ray/auth_token on every node: docs/how-to/cluster.md"
NOT_SHARED = "--storage on a filesystem that all nodes mount (NFS, Lustre), or s3://…"

Nodes = Mapping[str, Any]  # address -> the actor on that node


class Check(NamedTuple):
    """One line of the table: what was checked, the verdict, what was found, and what to do about it."""

    name: str
    state: Literal["fine", "wrong", "note"]
    found: str
    remedy: str = ""


def examine(address: str, storage: str) -> list[Check]:
    """Check all nodes of the cluster at `address`, and whether all of them see `storage`.

    Raises:
        SweepError: there is no cluster at that address.
        UserError: `storage` cannot be written.
    """
    files = Files(storage)
    files.check_writable()
    with connected(Launch(workers=1), address):
        alive = {node["NodeManagerAddress"]: node for node in ray.nodes() if node["Alive"]}
        nodes = {address: _actor(node) for address, node in alive.items()}
        facts, silent = _answers({address: actor.look.remote() for address, actor in nodes.items()})
        nodes = {address: actor for address, actor in nodes.items() if address in facts}
        checks = list(_of_nodes(facts, silent))
        if nodes:
            checks += [_clocks(nodes), *_storage(nodes, files), _network(nodes, facts)]
        return [check._replace(found=public(check.found)) for check in checks]


def table(checks: list[Check]) -> Table:
    """The checks as a table for the terminal."""
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
    """The nodes' answers, and the reasons why others gave none."""
    until, answers, silent = time.monotonic() + ANSWER_S, {}, {}
    for address, answer in asked.items():
        try:
            answers[address] = ray.get(answer, timeout=max(1.0, until - time.monotonic()))
        except GetTimeoutError:
            silent[address] = "did not answer; a sweep may hold all its GPUs"
        except RayError as error:
            silent[address] = last_line(error)
    return answers, silent


def _of_nodes(facts: Mapping[str, Any], silent: Mapping[str, str]) -> Iterator[Check]:
    count = f"{len(facts)} of {len(facts) + len(silent)} answer"
    if silent:
        reasons = "; ".join(f"{address}: {reason}" for address, reason in silent.items())
        yield Check("nodes", "wrong", f"{count}; {reasons}", "ray status, and the logs that it names")
    else:
        yield Check("nodes", "fine", f"{count}: {', '.join(facts)}")
    if not facts:
        return
    open_nodes = [address for address, node in facts.items() if node["auth"] != "token"]
    yield _all("token", open_nodes, "on", "not on", OPEN_AUTH)
    for name in ("python", "ray", "torch", "raysweep"):
        remedy = CODE if name == "raysweep" else "pip install -c constraints.txt on every node, then ray up again"
        yield _same(name, {address: node["versions"][name] for address, node in facts.items()}, remedy)
    gpus = {address: node for address, node in facts.items() if node["versions"]["driver"] != "none"}
    if gpus:
        kinds = {address: ", ".join(node["gpus"]) or "none that torch can use" for address, node in gpus.items()}
        yield _same("GPU", kinds, "use nodes of one kind: the slowest worker of a lane sets the lane's speed")
        drivers = {address: node["versions"]["driver"] for address, node in gpus.items()}
        yield _same("driver", drivers, "use one machine image for all nodes")
    else:
        yield Check("GPU", "note", "none", "sweeps run on CPUs: --profile laptop")
    lacking = [address for address, node in facts.items() if not node["weights"]]
    if lacking:
        state: Literal["note", "wrong"] = "note" if len(lacking) == len(facts) else "wrong"
        remedy = "get them as docs/reference/search_spaces.md#probe says, or use probe.detector: effnet_lite0"
        yield Check("detector weights", state, f"missing on {_places(lacking, facts)}", remedy)
    else:
        yield Check("detector weights", "fine", "there")


def _clocks(nodes: Nodes) -> Check:
    offsets = {}
    for address, actor in nodes.items():
        asked = time.time()
        with contextlib.suppress(RayError):
            theirs = ray.get(actor.now.remote(), timeout=ANSWER_S)
            offsets[address] = theirs - (asked + time.time()) / 2
    spread = max(offsets.values(), default=0.0) - min(offsets.values(), default=0.0)
    if spread > CLOCKS_S:
        worst = max(offsets, key=lambda address: abs(offsets[address]))
        return Check("clocks", "wrong", f"{spread:.1f} s apart, {worst} the most", "chrony or ntp on every node")
    return Check("clocks", "fine", f"{spread * 1e3:.0f} ms apart")


def _storage(nodes: Nodes, files: Files) -> Iterator[Check]:
    """Check that all nodes read a file that one node writes, and then its replacement; and that of all nodes that
    create the same file, exactly one succeeds."""
    folder = f"checkups/{uuid.uuid4().hex[:12]}"
    store = files.uri, files.mark
    writer = next(iter(nodes.values()))
    try:
        for content in (b"first", b"second"):
            ray.get(writer.write.remote(*store, f"{folder}/file", content), timeout=ANSWER_S)
            reads, silent = _answers({at: node.read.remote(*store, f"{folder}/file") for at, node in nodes.items()})
            wrong = [address for address, read in reads.items() if read != content]
            if wrong or silent:
                blind, reasons = ", ".join([*wrong, *silent]), "; ".join(silent.values())
                finding = f"{files.uri}: {blind} did not see what was written {reasons}"
                yield Check("storage", "wrong", finding.strip(), NOT_SHARED)
                return
        yield Check("storage", "fine", f"{files.uri}: all nodes see what one writes, and replaces")
        asked = {at: node.create.remote(*store, f"{folder}/one", at.encode()) for at, node in nodes.items()}
        created, silent = _answers(asked)
        winners = [address for address, won in created.items() if won]
        if len(winners) == 1 and not silent:
            yield Check("exclusive create", "fine", f"one of {len(created)} made the file")
        else:
            finding = f"{len(winners)} nodes made the same file; {'; '.join(silent.values())}".rstrip("; ")
            yield Check("exclusive create", "wrong", finding, "a filesystem with hard links, or NFS version 4")
    except (RayError, OSError) as error:
        yield Check("storage", "wrong", last_line(error), NOT_SHARED)
    finally:
        with contextlib.suppress(OSError):
            files.delete_folder(folder)


def _network(nodes: Nodes, facts: Mapping[str, Any]) -> Check:
    """The rate of an all-reduce between the nodes with GPUs, or between all nodes if none has GPUs."""
    chosen = {address: actor for address, actor in nodes.items() if facts[address]["gpus"]} or dict(nodes)
    kind = "GPU" if any(facts[address]["gpus"] for address in chosen) else "CPU"
    if len(chosen) < 2:
        return Check("all-reduce", "note", "only one node")
    rendezvous = ray.get(next(iter(chosen.values())).rendezvous.remote(), timeout=ANSWER_S)
    asked = {
        address: actor.all_reduce.remote(rendezvous, rank, len(chosen), ANSWER_S / 3)
        for rank, (address, actor) in enumerate(chosen.items())
    }
    rates, silent = _answers(asked)
    advice = "GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME, open ports between nodes; on AWS, EFA: docs/how-to/cluster.md"
    if silent:
        return Check(
            "all-reduce", "wrong", "; ".join(f"{address}: {reason}" for address, reason in silent.items()), advice
        )
    slowest = min(rates.values())
    finding = f"{slowest / 1e9:.2f} GB/s between {len(chosen)} nodes, by {'NCCL' if kind == 'GPU' else 'gloo'}"
    return Check("all-reduce", "wrong" if slowest < SLOW[kind] else "fine", finding, advice * (slowest < SLOW[kind]))


def _same(name: str, values: Mapping[str, str], remedy: str) -> Check:
    groups = defaultdict(list)
    for address, value in values.items():
        groups[value].append(address)
    if len(groups) == 1:
        return Check(name, "fine", next(iter(groups)))
    differing = "; ".join(f"{value} on {', '.join(addresses)}" for value, addresses in groups.items())
    return Check(name, "wrong", differing, remedy)


def _all(name: str, bad: list[str], good: str, fault: str, remedy: str) -> Check:
    return Check(name, "wrong", f"{fault}: {', '.join(bad)}", remedy) if bad else Check(name, "fine", good)


def _places(addresses: list[str], facts: Mapping[str, Any]) -> str:
    return "all nodes" if len(addresses) == len(facts) else ", ".join(addresses)
