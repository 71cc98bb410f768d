"""Two real ranks agree on failures, on waiting for the storage and on when to stop."""

import json
from pathlib import Path

import torch.distributed as dist
import torch.multiprocessing as mp

from raysweep.execution.ranks import Ranks
from raysweep.store.store import CheckpointMissing


def _rank(rank: int, folder: Path) -> None:
    rendezvous = dist.FileStore(str(folder / "rendezvous"), 2)
    dist.init_process_group("gloo", store=rendezvous, rank=rank, world_size=2)
    ranks, seen, messages = Ranks(rank, 2, timeout_s=30), {}, []
    seen["shared"] = ranks.share("of rank 0" if rank == 0 else "of rank 1")

    def missing() -> None:
        if rank == 1:
            raise CheckpointMissing("gone")

    try:
        ranks.together(missing, messages.append)
    except CheckpointMissing as error:
        seen["error"] = str(error)

    tries = 0

    def full() -> str:
        nonlocal tries
        tries += 1
        if rank == 0 and tries < 3:
            raise OSError(28, "No space left on device")
        return f"result of {rank}"

    seen["result"], seen["tries"] = ranks.together(full, messages.append), tries
    seen["messages"] = messages
    seen["agreed"] = [ranks.agree(rank == 1 and step == 2) for step in range(5)]
    ranks.agree(True)
    seen["last_agreed"] = [ranks.last_agreed(), ranks.last_agreed()]
    (folder / f"{rank}.json").write_text(json.dumps(seen))
    dist.destroy_process_group()


def test_an_error_on_one_rank_is_raised_on_all(tmp_path):
    mp.spawn(_rank, (tmp_path,), nprocs=2)
    seen = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    for rank, one in enumerate(seen):
        assert one["shared"] == "of rank 0"
        assert one["error"] == "'gone'"
        assert one["result"] == f"result of {rank}" and one["tries"] == 3
        assert len(one["messages"]) == 1 and "No space left" in one["messages"][0]
        assert one["agreed"] == [False, False, False, True, False]  # a step late, on both at once
        assert one["last_agreed"] == [True, False]


def test_a_single_rank_waits_for_nobody():
    alone = Ranks(0, 1, timeout_s=1)
    assert alone.share(3) == 3 and alone.together(lambda: 4, print) == 4
    assert alone.agree(True) and not alone.agree(False) and not alone.last_agreed()
