"""Numbers as people write them."""

from __future__ import annotations


def short(steps: float) -> str:
    """A number of steps: 7.9M, 400K, 16."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "K")):
        if steps >= size:
            return f"{round(steps / size, 2):g}{unit}"
    return f"{steps:.3g}"
