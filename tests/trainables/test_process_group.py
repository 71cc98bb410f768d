"""Work that ranks divide gives what a single rank computes, in the same order."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from trainables.process_group import ALONE, ProcessGroup

PIECES = [torch.full((2,), float(number)) for number in range(5)]  # more than ranks, and no multiple of them


def make(piece: torch.Tensor) -> torch.Tensor:
    return piece.exp()


def _rank(rank: int, world_size: int, out: Path) -> None:
    dist.init_process_group(
        "gloo", store=dist.FileStore(str(out / "meet"), world_size), rank=rank, world_size=world_size
    )
    group, asked = ProcessGroup(rank, world_size), []

    def noted(piece: torch.Tensor) -> torch.Tensor:
        asked.append(int(piece[0]))
        return make(piece)

    shared = group.share(PIECES, noted)
    torch.save({"made": shared, "asked": asked, "gathered": group.gather(rank)}, out / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_divide_the_work_and_all_get_every_result(ranks: int, tmp_path: Path) -> None:
    mp.spawn(_rank, (ranks, tmp_path), nprocs=ranks)
    results = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(ranks)]
    assert sorted(sum((result["asked"] for result in results), [])) == list(range(len(PIECES)))
    for result in results:
        assert result["gathered"] == list(range(ranks))
        assert len(result["made"]) == len(PIECES)
        assert all(torch.equal(mine, alone) for mine, alone in zip(result["made"], map(make, PIECES), strict=True))


def test_a_single_rank_does_all_the_work() -> None:
    assert ALONE.share([1, 2, 3], lambda piece: piece * 2) == [2, 4, 6] and ALONE.gather("x") == ["x"]
