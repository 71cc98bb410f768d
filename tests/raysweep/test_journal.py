"""The journal survives the loss of any one file, and of any one line. A driver that was overtaken cannot write it."""

import pytest

from raysweep.errors import SweepError
from raysweep.store.store import Store
from raysweep.study import journal as journals
from raysweep.study.journal import Journal, opening, studies

ENTRIES = [{"kind": "probed", "trial": n, "metrics": {"fid": n / 7}, "point": {"layers": [8, 6]}} for n in range(5)]


@pytest.fixture(params=[256, 2], ids=["one part", "many parts"])
def journal(storage, request, monkeypatch) -> Journal:
    monkeypatch.setattr(journals, "PART", request.param)
    written = Journal(Store(storage).files, "study")
    for entry in ENTRIES:
        written.append(**entry)
    return written


def files(storage: str) -> list[str]:
    return sorted(entry.path for entry in Store(storage).files.walk("studies/study"))


def test_a_journal_is_read_as_it_was_written(storage, journal):
    assert Journal(Store(storage).files, "study").read() == ENTRIES == journal.read()
    assert Journal(Store(storage).files, "another").read() == []
    assert studies(Store(storage).files) == ["study"] and opening(Store(storage).files, "study") == ENTRIES[0]


@pytest.mark.parametrize("how", ["delete", "truncate", "flip"])
def test_any_one_file_may_be_damaged(storage, journal, how):
    store = Store(storage).files
    for victim in files(storage):
        content = store.read(victim)
        for place in [len(content) // 3, len(content) - 5]:
            if how == "delete":
                store.delete(victim)
            else:
                altered = b"" if how == "truncate" else bytes([content[place] ^ 1]) + content[place + 1 :]
                store.write(victim, content[:place] + altered)
            assert Journal(store, "study").read() == ENTRIES
            assert opening(store, "study") == ENTRIES[0]
        store.write(victim, content)


@pytest.mark.parametrize("how", ["delete", "flip"])
def test_the_next_driver_mends_what_is_damaged(storage, how):
    store = Store(storage).files
    written = Journal(store, "study")
    for entry in ENTRIES:
        written.append(**entry)
    for copy, other in [("journal/", "journal-copy/"), ("journal-copy/", "journal/")]:
        for victim in [path for path in files(storage) if copy in path]:
            content = store.read(victim)
            store.delete(victim) if how == "delete" else store.write(victim, content.replace(b'"kind"', b'"kinb"'))
        Journal(store, "study").append("noted", by=copy)
        for path in [path for path in files(storage) if other in path]:
            store.delete(path)
        entries = Journal(store, "study").read()
        assert entries[:5] == ENTRIES and entries[-1] == {"kind": "noted", "by": copy}
        Journal(store, "study").take_over()


def test_an_entry_that_both_copies_lost_ends_the_journal_there(storage):
    store = Store(storage).files
    written = Journal(store, "study")
    for entry in ENTRIES:
        written.append(**entry)
    for file in files(storage):
        store.write(file, store.read(file).replace(b'"trial": 3', b'"trial": 4'))
    again = Journal(store, "study")
    assert again.read() == ENTRIES[:3]
    again.append("ended", trial=1)
    after = Journal(store, "study")
    assert after.read() == [*ENTRIES[:3], {"kind": "ended", "trial": 1}]
    assert [entry["trial"] for batch in after.ignored for entry in batch.entries] == [4]
    after.append("ended", trial=2)
    assert Journal(store, "study").read() == [*ENTRIES[:3], *({"kind": "ended", "trial": n} for n in (1, 2))]


def test_entries_that_are_appended_together_are_one_batch(storage):
    store = Store(storage).files
    journal = Journal(store, "study")
    journal.append("opened")
    before = len(files(storage))
    with journal.together():
        for number in range(3):
            with journal.together():
                journal.append("noted", number=number)
        assert len(files(storage)) == before
    assert len(files(storage)) == before + 2
    assert [entry["kind"] for entry in Journal(store, "study").read()] == ["opened", *["noted"] * 3]


def test_a_long_journal_lies_in_parts_too(storage, monkeypatch):
    monkeypatch.setattr(journals, "PART", 10)
    store = Store(storage).files
    writer = Journal(store, "long")
    for number in range(33):
        writer.append("noted", number=number)
    assert len(store.names("studies/long/journal-parts")) == 3
    reads = []
    monkeypatch.setattr(store, "read", lambda path, read=store.read: reads.append(path) or read(path))
    assert [entry["number"] for entry in Journal(store, "long").read()] == list(range(33))
    assert len(reads) == 3 + 4  # the parts, and the batches since the last one


def test_a_driver_that_was_overtaken_cannot_write(storage):
    store = Store(storage).files
    slow, taken = Journal(store, "x"), Journal(store, "x")
    slow.append("opened")
    taken.take_over()
    with pytest.raises(SweepError, match="taken over"):
        slow.append("proposed", by="slow")
    taken.append("proposed", by="taken")
    with pytest.raises(SweepError, match="taken over"):
        slow.append("proposed", by="slow")
    third = Journal(store, "x")
    third.append("proposed", by="third")
    for overtaken in (slow, taken):
        with pytest.raises(SweepError, match="taken over"):
            overtaken.append("proposed", by="overtaken")
    assert [entry.get("by") for entry in Journal(store, "x").read()] == [None, "taken", "third"]


def test_who_has_read_a_journal_does_not_write_after_another_has(storage):
    store = Store(storage).files
    late = Journal(store, "x")
    assert late.read() == []
    Journal(store, "x").append("opened")
    with pytest.raises(SweepError, match="another process has written"):
        late.append("opened")
    assert len(Journal(store, "x").read()) == 1
