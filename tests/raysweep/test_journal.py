"""The journal survives the loss of any one file, and of any one line."""

import pytest

from raysweep.store.store import Store
from raysweep.study import journal as journals
from raysweep.study.journal import Journal

ENTRIES = [{"kind": "probed", "trial": n, "metrics": {"fid": n / 7}, "point": {"layers": [8, 6]}} for n in range(5)]


@pytest.fixture
def journal(storage) -> Journal:
    written = Journal(Store(storage).files, "study")
    for entry in ENTRIES:
        written.append(**entry)
    return written


def files(storage: str) -> list[str]:
    return [f"studies/study/{name}" for name in Store(storage).files.names("studies/study")]


def test_a_journal_is_read_as_it_was_written(storage, journal):
    assert Journal(Store(storage).files, "study").read() == ENTRIES == journal.read()
    assert Journal(Store(storage).files, "another").read() == []


@pytest.mark.parametrize("how", ["delete", "truncate", "flip"])
@pytest.mark.parametrize("copy", [0, 1])
def test_any_one_file_may_be_damaged(storage, journal, copy, how):
    store, victim = Store(storage).files, sorted(files(storage))[copy]
    content = store.read(victim)
    for place in range(7, len(content), 97):
        if how == "delete":
            store.delete(victim)
        else:
            altered = content[:place] + (
                b"" if how == "truncate" else bytes([content[place] ^ 1]) + content[place + 1 :]
            )
            store.write(victim, altered)
        assert Journal(store, "study").read() == ENTRIES
        if how == "delete":
            break
    again = Journal(store, "study")
    again.append("ended", trial=0)
    for other in sorted(files(storage)):  # mended: now the other may go
        if other != victim:
            store.delete(other)
    assert Journal(store, "study").read() == [*ENTRIES, {"kind": "ended", "trial": 0}]


def test_an_entry_that_both_copies_lost_ends_the_journal_there(storage, journal):
    store = Store(storage).files
    for file in files(storage):
        store.write(file, store.read(file).replace(b'"trial": 3', b'"trial": 4'))
    again = Journal(store, "study")
    assert again.read() == ENTRIES[:3]
    again.append("ended", trial=1)
    assert Journal(store, "study").read() == [*ENTRIES[:3], {"kind": "ended", "trial": 1}]


def test_a_long_journal_lies_in_parts_where_nothing_can_be_appended(s3, monkeypatch):
    monkeypatch.setattr(journals, "PART_LINES", 20)
    store = Store(s3.format("long")).files
    writer = Journal(store, "study")
    for number in range(23):
        writer.append("noted", number=number)
    assert len(store.names("studies/study")) == 4
    assert [entry["number"] for entry in Journal(store, "study").read()] == list(range(23))
