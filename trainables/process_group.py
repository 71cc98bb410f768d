"""Ranks that divide work: each rank computes a share, and all ranks get all results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch.distributed as dist

Piece = TypeVar("Piece")
Made = TypeVar("Made")


class ProcessGroup(NamedTuple):
    """One rank of a group. All ranks call every method, in the same order."""

    rank: int = 0
    world_size: int = 1

    def gather(self, mine: Made) -> list[Made]:
        """The values of all ranks, in the order of ranks."""
        if self.world_size == 1:
            return [mine]
        gathered: list[Any] = [None] * self.world_size
        dist.all_gather_object(gathered, mine)
        return gathered

    def share(self, pieces: Sequence[Piece], make: Callable[[Piece], Made]) -> list[Made]:
        """`make(piece)` for every piece, in order; each rank computes a share. The bits are those of a single rank."""
        made = self.gather([make(piece) for piece in pieces[self.rank :: self.world_size]])
        return [made[number % self.world_size][number // self.world_size] for number in range(len(pieces))]


ALONE = ProcessGroup()
