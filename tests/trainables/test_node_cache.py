"""Copies are made once, verified, bounded by their budget, and safe from other users, kills and full disks."""

import errno
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from locks import wait_for, waiting_in

from trainables import node_cache
from trainables.node_cache import Altered, Copies, Verified, budget_bytes, private_folder

CONTENT = b"weights" * 1000
SIZE = len(CONTENT)


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield tmp_path / "cache"
    node_cache.release()


def copies(budget: float = 2**40) -> Copies:
    return Copies(private_folder("checkpoints"), Verified(private_folder("verified")), budget)


def contents_of(name: str, content: bytes = CONTENT) -> dict[str, tuple[int, str]]:
    return {name: (len(content), hashlib.sha256(content).hexdigest())}


def write(name: str, target: Path) -> str:
    """Copies every file with the same content."""
    target.write_bytes(CONTENT)
    return hashlib.sha256(CONTENT).hexdigest()


def no_copy(name: str, target: Path) -> str:
    raise AssertionError("copied again")


def other_process(name: str, then: str = "input()", copy: str = "target.write_bytes(CONTENT)") -> subprocess.Popen:
    """A process that makes or opens the copy of a file and then goes on as `then` says."""
    code = f"""
import sys
sys.path += [{str(Path(__file__).parent)!r}, {str(Path(__file__).parents[1])!r}]
from test_node_cache import CONTENT, contents_of, copies, hashlib
def copy(name, target):
    {copy}
    return hashlib.sha256(CONTENT).hexdigest()
copies().get("source", contents_of({name!r}), copy)
print("opened", flush=True)
{then}
"""
    return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


# --- the folder


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_every_folder_of_the_cache_is_made_for_one_user(cache_home, umask):
    before = os.umask(umask)
    try:
        folder = private_folder("of a store")
    finally:
        os.umask(before)
    for made in (folder, folder.parent, cache_home):
        assert made.stat().st_mode & 0o777 == 0o700
    assert private_folder("of a store") == folder == cache_home / "raysweep" / "of a store"


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("how", ["symbolic link", "dangling", "file", "writable", "of another user"])
def test_a_folder_that_others_can_have_filled_is_refused(cache_home, tmp_path, how, depth):
    planted = (cache_home / "raysweep", cache_home / "raysweep" / "of a store")[depth]
    planted.parent.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    if how == "symbolic link":
        planted.symlink_to(tmp_path / "elsewhere")
    elif how == "dangling":
        planted.symlink_to(tmp_path / "nowhere")
    elif how == "file":
        planted.touch()
    else:
        planted.mkdir()
        planted.chmod(0o770 if how == "writable" else 0o700)
    if how == "of another user":
        if os.geteuid():
            pytest.skip("giving a folder away takes root")
        os.chown(planted, 12345, 12345)
    with pytest.raises(ValueError, match="XDG_CACHE_HOME") as refusal:
        private_folder("of a store")
    assert "\n" not in str(refusal.value) and str(planted) in str(refusal.value)
    assert not any((tmp_path / "elsewhere").iterdir()) and not (tmp_path / "nowhere").exists()


def test_a_place_where_no_folder_can_be_made_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ValueError, match="set XDG_CACHE_HOME to a folder of yours"):
        private_folder("of a store")


@pytest.mark.parametrize("text", ["many", "-1", "nan", "inf", "10 GiB"])
def test_a_budget_that_is_no_size_is_refused(monkeypatch, text):
    monkeypatch.setenv("SOME_BUDGET", text)
    with pytest.raises(ValueError, match=f"SOME_BUDGET={text}: give .* such as 100$"):
        budget_bytes("SOME_BUDGET", 100)


@pytest.mark.parametrize(("text", "gib"), [("", 100), ("0", 0), ("0.5", 0.5), ("2000", 2000)])
def test_a_budget_is_given_in_gib(monkeypatch, text, gib):
    monkeypatch.setenv("SOME_BUDGET", text)
    assert budget_bytes("SOME_BUDGET", 100) == gib * 2**30


# --- copies


def test_of_many_that_ask_at_once_one_copies(cache_home):
    copied = []

    def copy(name: str, target: Path) -> str:
        copied.append(name)
        wait_for(lambda: waiting_in(target.parents[1]) == 3)
        return write(name, target)

    with ThreadPoolExecutor(4) as threads:
        places = list(threads.map(lambda _: copies().get("source", contents_of("a"), copy), range(4)))
    assert copied == ["a"] and len(set(places)) == 1 and (places[0] / "a").read_bytes() == CONTENT
    assert copies().get("source", contents_of("a"), no_copy) == places[0]


@pytest.mark.parametrize("error", [OSError("no answer"), None], ids=["no answer", "altered"])
def test_those_that_wait_for_a_copy_that_fails_get_its_error_and_do_not_try(error):
    tried = []

    def fail(name: str, target: Path) -> str:
        tried.append(name)
        wait_for(lambda: waiting_in(target.parents[1]) == 3)
        if error:
            raise error
        return "another"

    def attempt(_: int) -> str:
        with pytest.raises(OSError if error else Altered) as caught:
            copies().get("source", contents_of("a"), fail)
        return str(caught.value)

    with ThreadPoolExecutor(4) as threads:
        assert set(threads.map(attempt, range(4))) == {"no answer" if error else "a was altered"}
    assert tried == ["a"]
    assert (
        copies().get("source", contents_of("a"), write) / "a"
    ).read_bytes() == CONTENT  # the next attempt is a new one


def test_a_file_that_is_missing_is_named(cache_home):
    with pytest.raises(Altered, match="a is missing"):
        copies().get("source", contents_of("a"), lambda name, target: None)
    assert not list(cache_home.rglob("a")) and not list(cache_home.rglob("*.part"))


def test_a_copy_whose_process_was_killed_is_made_by_one_that_waits(cache_home):
    killed = other_process(
        "a", copy="target.write_bytes(CONTENT[:100]); print('copying', flush=True); import time; time.sleep(600)"
    )
    assert killed.stdout.readline() == "copying\n"
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(lambda: copies().get("source", contents_of("a"), write))
        wait_for(lambda: waiting_in(cache_home / "raysweep" / "checkpoints") == 1)
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
        place = waiting.result(timeout=60)
    assert (place / "a").read_bytes() == CONTENT
    assert not list(place.parent.glob("*.part"))


def test_what_a_killed_process_left_is_deleted_with_the_next_copy(cache_home):
    killed = other_process("a", copy="target.write_bytes(CONTENT); import os; os.kill(os.getpid(), 9)")
    killed.communicate()
    (left,) = (cache_home / "raysweep" / "checkpoints").glob("*.part")
    copies().get("source", contents_of("b"), write)
    assert not left.exists() and not list(left.parent.glob(f"{left.stem}.*"))


@pytest.mark.parametrize("how", ["another size", "same size", "same size and time", "deleted", "emptied folder"])
def test_a_copy_that_was_altered_is_made_again(how):
    file = copies().get("source", contents_of("a"), write) / "a"
    status = file.stat()
    if how == "another size":
        file.write_bytes(b"short")
    elif how == "deleted":
        file.unlink()
    elif how == "emptied folder":
        file.unlink()
        file.parent.rmdir()
    else:
        time.sleep(0.05)  # a kernel's clock for files is this coarse
        file.write_bytes(CONTENT[::-1])
        if how == "same size and time":
            os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (copies().get("source", contents_of("a"), write) / "a").read_bytes() == CONTENT


def test_a_full_disk_leaves_nothing_and_is_named(cache_home):
    def fill(name: str, target: Path) -> str:
        target.write_bytes(CONTENT[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left on device.*checkpoints"):
        copies().get("source", contents_of("a"), fill)
    assert not list(cache_home.rglob("a")) and not list(cache_home.rglob("*.part"))
    assert (copies().get("source", contents_of("a"), write) / "a").read_bytes() == CONTENT


def test_copies_make_room_on_a_small_disk(tmp_path, monkeypatch):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={8 * SIZE}", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs takes root")
    try:
        monkeypatch.setenv("XDG_CACHE_HOME", str(disk))
        for number in range(20):
            assert (copies().get("source", contents_of(str(number)), write) / str(number)).read_bytes() == CONTENT
            node_cache.release()
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


# --- the budget


def kept(folder: Path) -> set[str]:
    return {file.name for place in folder.iterdir() if place.is_dir() for file in place.iterdir()}


def use(budget: float, *names: str) -> set[str]:
    """Open copies one after another, each only for a moment; returns the names of those that are kept."""
    for name in names:
        time.sleep(0.02)  # a kernel's clock for files is this coarse
        folder = copies(budget).get("source", contents_of(name), write).parent
        node_cache.release()
    return kept(folder)


def test_the_least_recently_used_copies_make_room():
    assert use(2.5 * SIZE, "a", "b") == {"a", "b"}
    assert use(2.5 * SIZE, "a", "c") == {"a", "c"}
    assert use(2.5 * SIZE, "d") == {"c", "d"}


def test_a_copy_larger_than_the_budget_is_kept_while_it_is_used():
    place = copies(0).get("source", contents_of("a"), write)
    assert copies(0).get("source", contents_of("a"), no_copy) == place
    copies(0).get("source", contents_of("b"), write)
    assert kept(place.parent) == {"a", "b"}
    node_cache.release()
    copies(0).get("source", contents_of("c"), write)
    assert kept(place.parent) == {"c"}


def test_a_copy_that_another_process_uses_stays_until_that_process_ends():
    user = other_process("a")
    assert user.stdout.readline() == "opened\n"
    assert use(0, "b") == {"a", "b"}
    user.send_signal(signal.SIGKILL)
    user.communicate()
    assert use(0, "c") == {"c"}


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=15), st.floats(0, 4))
def test_copies_that_nobody_uses_fit_into_the_budget(tmp_path_factory, opened, budget):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        used: set[str] = set()
        for number, let_go in opened:
            there = kept(private_folder("checkpoints"))
            made = str(number) not in there
            place = copies(budget * SIZE).get("source", contents_of(str(number)), write)
            assert (place / str(number)).read_bytes() == CONTENT
            used.add(str(number))
            now = kept(place.parent)
            assert used <= now
            assert not made or len(now) <= max(budget, len(used))
            if let_go:
                node_cache.release()
                used.clear()
        node_cache.release()


# --- files that are used in place


@pytest.fixture
def reads(tmp_path: Path) -> Iterator[list[str]]:
    """The names of the files below `tmp_path/data` that this process opens."""
    opened, active, data = [], [True], str(tmp_path / "data")

    def hear(event: str, arguments: tuple) -> None:
        if active and event == "open" and str(arguments[0]).startswith(data):
            opened.append(Path(arguments[0]).name)

    sys.addaudithook(hear)  # a hook cannot be removed
    yield opened
    active.clear()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    for name in "ab":
        (tmp_path / "data" / name).write_bytes(CONTENT)
    return tmp_path / "data"


TWO = contents_of("a") | contents_of("b")


def test_files_are_read_once(data, reads):
    reads.clear()
    for _ in range(3):
        Verified(private_folder("verified")).check(data, TWO)
    assert sorted(reads) == ["a", "b"]


def test_of_many_that_ask_at_once_one_reads(data, reads):
    reads.clear()
    start = threading.Barrier(4)

    def check(_: int) -> None:
        start.wait()
        Verified(private_folder("verified")).check(data, TWO)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(check, range(4)))
    assert sorted(reads) == ["a", "b"]


@pytest.mark.parametrize("memory", [True, False])
@pytest.mark.parametrize("how", ["another size", "same size", "same size and time", "replaced", "deleted"])
def test_what_was_written_since_is_noticed(data, how, memory):
    verified = Verified(private_folder("verified") if memory else None)
    verified.check(data, TWO)
    status = (data / "a").stat()
    if how == "another size":
        (data / "a").write_bytes(b"short")
    elif how == "deleted":
        (data / "a").unlink()
    elif how == "replaced":
        (data / "new").write_bytes(CONTENT[::-1])
        os.utime(data / "new", ns=(status.st_atime_ns, status.st_mtime_ns))
        (data / "new").replace(data / "a")
    else:
        time.sleep(0.05)  # a kernel's clock for files is this coarse
        (data / "a").write_bytes(CONTENT[::-1])
        if how == "same size and time":
            os.utime(data / "a", ns=(status.st_atime_ns, status.st_mtime_ns))
    for _ in range(2):
        with pytest.raises(Altered, match=r"^a (is missing|was altered|is of another size)"):
            verified.check(data, TWO)


def test_what_was_verified_before_the_machine_was_started_again_is_read_again(data, reads, monkeypatch):
    Verified(private_folder("verified")).check(data, TWO)
    reads.clear()
    monkeypatch.setattr(node_cache, "_started", lambda: "another time")
    Verified(private_folder("verified")).check(data, TWO)
    assert sorted(reads) == ["a", "b"]


def test_what_was_verified_long_ago_is_forgotten(data, reads, tmp_path):
    (tmp_path / "data" / "c").write_bytes(CONTENT)
    verified = Verified(private_folder("verified"))
    verified.check(data, TWO)
    (memory,) = private_folder("verified").iterdir()
    os.utime(memory, (0, 0))
    reads.clear()
    verified.check(data, TWO)
    assert sorted(reads) == ["a", "b"]
    os.utime(memory, (0, 0))
    verified.check(tmp_path, {"data/c": contents_of("c")["c"]})
    assert not memory.exists()


def test_a_memory_that_cannot_be_written_does_no_harm(data):
    folder = private_folder("verified")
    verified = Verified(folder)
    folder.rmdir()
    folder.write_text("in the way")
    verified.check(data, TWO)
