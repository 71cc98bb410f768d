"""The ranks that do one thing together: what all of them need, each makes a share of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch.distributed as dist

Piece = TypeVar("Piece")
Made = TypeVar("Made")


class ProcessGroup(NamedTuple):
    """A rank among others. Every method is called by all of them, in the same order."""

    rank: int = 0
    world_size: int = 1

    def gather(self, mine: Made) -> list[Made]:
        """What each has, by rank."""
        if self.world_size == 1:
            return [mine]
        everyone: list[Any] = [None] * self.world_size
        dist.all_gather_object(everyone, mine)
        return everyone

    def share(self, pieces: Sequence[Piece], make: Callable[[Piece], Made]) -> list[Made]:
        """`make` of each piece, in order, with the bits that one rank would have come to alone."""
        made = self.gather([make(piece) for piece in pieces[self.rank :: self.world_size]])
        return [made[number % self.world_size][number // self.world_size] for number in range(len(pieces))]


ALONE = ProcessGroup()
