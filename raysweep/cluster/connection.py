"""The Ray cluster of a sweep: connect to it or start it, and wait for the resources that a lane needs."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import textwrap
import threading
from collections.abc import Iterator
from typing import Any

import ray
from ray.util import placement_group, placement_group_table, remove_placement_group

from raysweep.errors import SweepError
from raysweep.space.launch import Launch
from trainables.datasets import prepared

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray's future default; where it is unset, Ray warns
    "RAY_AIR_NEW_OUTPUT": "0",  # the old output obeys verbose=0
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # the driver handles Ctrl-C
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process that sends workers a message that ours do not use
    "RAY_worker_maximum_startup_concurrency": "16",  # otherwise Ray warns of many trial processes, which only wait
}
INTERFACE = "raysweep.cluster.network.choose_interface"


@contextlib.contextmanager
def connected(launch: Launch, address: str) -> Iterator[None]:
    """Connect to the Ray cluster at `address`, or start one on this machine for `local`; disconnect or shut down at the
    end.

    Raises:
        SweepError: there is no cluster at that address, or this machine is too small for one lane.
    """
    quiet = {name: value for name, value in QUIET.items() if name not in os.environ}
    os.environ.update(quiet)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    if address == "local":
        needed = math.ceil(launch.lanes * launch.most * launch.cpus_per_worker)
        # Fewer cores than workers is slow, not stuck.
        options |= {"num_cpus": max(os.cpu_count() or 1, needed), "include_dashboard": False}
    else:  # processes on other machines do not inherit this one's environment
        own = {name: os.environ[name] for name in (prepared.ROOT, prepared.BUDGET) if name in os.environ}
        options["runtime_env"] = {"env_vars": quiet | own, "worker_process_setup_hook": INTERFACE}
    try:
        ray.init(address=address, **options)
    except Exception as error:  # Ray raises a plain Exception, e.g. if its processes did not start within 30 s
        hint = "" if address == "local" else "; if one runs there, ~/.ray/auth_token here must be the one of its nodes"
        raise SweepError(f"no Ray cluster at '{address}': {last_line(error)}{hint}") from None
    if threading.current_thread() is threading.main_thread():  # Ray has set its own handler, which prints a stack
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if address == "local":
            _check_resources(launch)
        yield
    finally:
        ray.shutdown()


def worker_resources(launch: Launch) -> dict[str, float]:
    """The resources of one worker of a lane, by Ray's names."""
    amounts = {"CPU": float(launch.cpus_per_worker), "GPU": float(launch.gpus_per_worker)}
    return {name: amount for name, amount in amounts.items() if amount}


class PlacementRequest:
    """A request for the resources that a lane needs to start. An autoscaler starts nodes for it.

    The request is a placement group, which is removed as soon as Ray has created it. It ends with this driver, so that
    no node is kept for a sweep that has ended. Ray Train's own attempts to start cannot wait for nodes: their time
    limit has to be short, because Train takes as long to notice that a node is gone.
    """

    def __init__(self, launch: Launch):
        self._group = placement_group(
            [worker_resources(launch)] * launch.fewest, strategy=launch.placement_strategy, name="raysweep-room"
        )

    def granted(self) -> bool:
        """Whether the cluster has the resources now. If it has, the request is closed."""
        if placement_group_table(self._group)["state"] != "CREATED":
            return False
        self.close()
        return True

    def close(self) -> None:
        """Withdraw the request."""
        with contextlib.suppress(Exception):  # the cluster may be gone
            remove_placement_group(self._group)


def shortage(launch: Launch) -> str:
    """What a lane needs and what the cluster has, to complete a sentence that begins with `it`. Resources that other
    jobs use count as well."""
    have, nodes = ray.cluster_resources(), sum(1 for node in ray.nodes() if node["Alive"])
    needs = " and ".join(f"{amount:g} {name}" for name, amount in worker_resources(launch).items())
    has = " and ".join(f"{have.get(name, 0):g} {name}" for name in worker_resources(launch))
    several = f"{launch.fewest} workers with {needs} each" if launch.fewest > 1 else f"a worker with {needs}"
    placed = f", placed {launch.placement_strategy}" if launch.placement_strategy.startswith("STRICT") else ""
    return f"needs {several}{placed}; the cluster has {has}, used or free, on {nodes} node{'s' * (nodes != 1)}"


def last_line(error: BaseException) -> str:
    """The last line of an error's message, shortened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return textwrap.shorten(lines[-1], 160) if lines else type(error).__name__


def _check_resources(launch: Launch) -> None:
    have = ray.cluster_resources()
    for name, amount in worker_resources(launch).items():
        if amount * launch.fewest > have.get(name, 0):
            raise SweepError(
                f"one lane needs {amount * launch.fewest:g} {name}s and this machine has {have.get(name, 0):g}; "
                "use a smaller --profile or --set launch.workers=N"
            )
