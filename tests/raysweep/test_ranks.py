"""Two real ranks agree on failures, on waiting for the storage and on when to stop."""

import json
from pathlib import Path

import torch.distributed as dist
import torch.multiprocessing as mp

from raysweep.execution.ranks import Pauses, Ranks
from raysweep.store.store import CheckpointMissing

# What rank 0 is asked after each of the steps 1 to 9, and where it stops.
ASKED = {
    "not at all": ([None] * 9, None),
    "at a step that it reaches": ([None, 5, 5, 5, 5, 5, 5, 5, 5], 5),
    "one step before": ([None, None, None, 5, None, None, None, None, None], 5),
    "too late": ([None, None, None, None, 5, 5, 5, 5, 5], None),
    "at an earlier step, later": ([8, 8, 8, 5, 5, 5, 5, 5, 5], 5),
    "at a later step, later": ([5, 8, 8, 8, 8, 8, 8, 8, 8], 5),
}


def stops(ranks: Ranks, asked: str) -> int | None:
    """The step at which the ranks stop."""
    pauses = Pauses(ranks, every_s=1000)
    try:
        for step, request in enumerate(ASKED[asked][0], start=1):
            assert not pauses.should_save(step, request if ranks.rank == 0 else None, idle=True)
            if pauses.should_stop(step):
                return step
        return None
    finally:
        ranks.last_agreed()


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
    seen["stops"] = [stops(ranks, asked) for asked in ASKED]
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
        assert one["stops"] == [stop for _, stop in ASKED.values()]


def test_a_single_rank_waits_for_nobody():
    alone = Ranks(0, 1, timeout_s=1)
    assert alone.share(3) == 3 and alone.together(lambda: 4, print) == 4
    assert alone.agree(True) and not alone.agree(False) and not alone.last_agreed()
    for asked, (_, stop) in ASKED.items():
        assert stops(Ranks(0, 1, timeout_s=1), asked) == stop


def test_ranks_stop_at_once_and_save_when_it_is_time():
    alone = Ranks(0, 1, timeout_s=1)
    pauses = Pauses(alone, every_s=0)
    assert pauses.should_save(1, None, idle=True) and not pauses.should_save(2, None, idle=False)
    assert pauses.should_save(3, 3, idle=True) and not pauses.should_stop(3)  # step 3 is reached already
    pauses.should_save(4, 0, idle=True)
    assert pauses.stop_at == 0 and pauses.should_stop(4)
