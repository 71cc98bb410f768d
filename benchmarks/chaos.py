"""Random kills of processes in running sweeps: what they cost, and whether any result changes.

    python benchmarks/chaos.py --minutes 30

One sweep of six trials at the smoke profile runs undisturbed. Then the same sweep runs repeatedly, each time in an
empty store, until the time is up. Every few seconds one of its processes, of a random role, gets a SIGKILL. If that was
the driver, the same command is run again. When the time is up, the last sweep finishes undisturbed.

Prints the kills by role and, for each sweep, its kills, its wall time relative to the undisturbed one, whether its
trials, table and checkpoint bits are the same, and whether processes or leases were left behind.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "chaos"))

from harness import ROLES, SPACE, Sweep, hashes, table, traces, trials_without_costs  # noqa: E402

PAUSE_S = (2.0, 20.0)  # between kills
CALM = 25  # kills in one sweep, after which it may finish undisturbed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance, killed, console = random.Random(options.seed), Counter[str](), Console()
    shown = Table("sweep", "kills", "starts", "seconds", "against undisturbed", "the same", title="Random kills")
    fine = True
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        (root / "space.yaml").write_text(SPACE)
        calm = _sweep(root, "undisturbed")
        began = time.monotonic()
        calm.start()
        result = calm.result()
        plain_s = time.monotonic() - began
        expected = (trials_without_costs(result), hashes(calm.storage), table(calm.storage))
        shown.add_row("undisturbed", "0", "1", f"{plain_s:.0f}", "1.00", "")
        console.print(f"undisturbed: {plain_s:.0f} s")
        until = time.monotonic() + 60 * options.minutes
        number = 0
        while time.monotonic() < until:
            number += 1
            sweep = _sweep(root, str(number))
            began = time.monotonic()
            kills = _disturb(sweep, chance, until, console)
            differs = _differences(sweep, expected)
            took = time.monotonic() - began
            killed += kills
            fine &= not differs
            shown.add_row(
                str(number),
                str(kills.total()),
                str(sweep.starts),
                f"{took:.0f}",
                f"{took / plain_s:.2f}",
                ", ".join(differs) or "yes",
            )
            console.print(f"sweep {number}: {kills.total()} kills, {took:.0f} s, differs in: {differs or 'nothing'}")
    console.print(shown)
    console.print("kills by role: " + ", ".join(f"{role} {count}" for role, count in killed.most_common()))
    return 0 if fine else 1


def _sweep(root: Path, name: str) -> Sweep:
    storage = root / name
    storage.mkdir()
    if name != "undisturbed":
        (storage / "cache").symlink_to(root / "undisturbed" / "cache")
    return Sweep(root / "space.yaml", storage)


def _disturb(sweep: Sweep, chance: random.Random, until: float, console: Console) -> Counter[str]:
    """Run a sweep to its end; returns the kills in it by role."""
    kills = Counter[str]()
    sweep.start()
    while sweep.running:
        time.sleep(chance.uniform(*PAUSE_S))
        role = chance.choice([*ROLES, "driver"])
        if time.monotonic() > until or kills.total() >= CALM or not sweep.kill(role, chance.choice):
            continue
        kills[role] += 1
        console.print(f"  killed: {role}", style="dim")
        if role == "driver":
            sweep.start()
    return kills


def _differences(sweep: Sweep, expected: tuple[object, object, object]) -> list[str]:
    """What differs from the undisturbed sweep."""
    try:
        result = sweep.result()
    except AssertionError as error:
        return [str(error).splitlines()[0]]
    disturbed = (trials_without_costs(result), hashes(sweep.storage), table(sweep.storage))
    names = ("trials", "checkpoints", "table")
    differs = [name for name, mine, theirs in zip(names, disturbed, expected, strict=True) if mine != theirs]
    return differs + ["processes left"] * bool(sweep.left_behind()) + ["leases left"] * bool(traces(sweep.storage))


if __name__ == "__main__":
    sys.exit(main())
