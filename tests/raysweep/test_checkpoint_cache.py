"""A checkpoint comes once to each machine, whichever number of processes open it, and is read once to verify it."""

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from locks import wait_for, waiting_in

from raysweep.commands import store as store_command
from raysweep.errors import UserError
from raysweep.store.files import PART
from raysweep.store.manifest import TrainingFacts
from raysweep.store.store import CheckpointDamaged, Store, StoredCheckpoint
from trainables import node_cache
from trainables.config import NoTerm, Phase, Run

RUN = Run(backbone="SiT-T/2", data="emoji9", batch_size=4, phases=[Phase(until=40, term=NoTerm())])
SMALL, LARGE = b"ema" * 1000, b"state" * (PART // 2)  # the large one comes in three parts

# Opens a checkpoint and prints the names of the stored files that this process has read for it.
OPEN = """
import json, sys
from pathlib import Path
from raysweep.store.store import CheckpointDamaged, Store
uri, key, step = sys.argv[1:]
read = []
sys.addaudithook(lambda event, arguments: event == "open" and read.append(str(arguments[0])))
store = Store(uri)
try:
    folder = store.open(store.get(key, int(step)))
except CheckpointDamaged as error:
    print(json.dumps({"damaged": str(error)}))
else:
    before = len(read)
    names = [Path(path).name for path in read[:before] if path.endswith(".safetensors")]
    print(json.dumps({"folder": str(folder), "read": names}))
"""


class Proxy(ThreadingHTTPServer):
    """Passes requests on to an S3 server, and records which files were read. `before` is called before each answer."""

    daemon_threads = True

    def __init__(self, server: str):
        self.server, self.reads, self.before = server, [], lambda path: None
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def through(self, uri: str) -> str:
        return uri.replace(self.server, f"127.0.0.1:{self.server_port}")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def answer(self) -> None:
        name = urlsplit(self.path).path.rpartition("/")[2]
        if self.command == "GET":
            self.server.reads.append(name)
        self.server.before(name)
        connection = http.client.HTTPConnection(self.server.server)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        connection.request(self.command, self.path, body, dict(self.headers))
        answer = connection.getresponse()
        content = answer.read()
        self.send_response(answer.status)
        for header, value in answer.getheaders():
            if header.lower() not in ("transfer-encoding", "content-length", "connection", "server", "date"):
                self.send_header(header, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else len(content)
        self.send_header("Content-Length", str(length or 0))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield tmp_path / "cache"
    node_cache.release()


@pytest.fixture
def bucket(s3: str) -> str:
    return s3.format(uuid.uuid4().hex[:8])


@pytest.fixture
def proxy(bucket: str) -> Iterator[Proxy]:
    proxy = Proxy(bucket.partition("endpoint_override=")[2].partition("&")[0])
    yield proxy
    proxy.shutdown()
    proxy.server_close()


def commit(store: Store, folder: Path, step: int = 10) -> StoredCheckpoint:
    folder.mkdir(exist_ok=True)
    (folder / "snapshot.safetensors").write_bytes(SMALL)
    (folder / "state.safetensors").write_bytes(LARGE)
    return store.commit(RUN, step, folder, TrainingFacts())


def opener(uri: str, checkpoint: StoredCheckpoint) -> subprocess.Popen:
    words = [sys.executable, "-c", OPEN, uri, checkpoint.key, str(checkpoint.step)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


def result(process: subprocess.Popen) -> dict:
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return json.loads(out)


def data_reads(proxy: Proxy) -> Counter[str]:
    return Counter(name for name in proxy.reads if name.endswith(".safetensors"))


def hold_until_all_wait(proxy: Proxy, cache_home: Path, others: int) -> None:
    """Delay what the first process reads until the others wait for it."""
    folder = cache_home / "raysweep" / "checkpoints"
    proxy.before = lambda name: (
        wait_for(lambda: waiting_in(folder) == others) if name == "snapshot.safetensors" else None
    )


def test_each_byte_comes_once_for_all_processes_of_a_machine(bucket, proxy, tmp_path, cache_home):
    checkpoint = commit(Store(bucket), tmp_path / "files")
    hold_until_all_wait(proxy, cache_home, 3)
    openers = [opener(proxy.through(bucket), checkpoint) for _ in range(4)]
    (folder,) = {result(process)["folder"] for process in openers}
    assert data_reads(proxy) == {"snapshot.safetensors": 1, "state.safetensors": 3}
    assert (Path(folder) / "state.safetensors").read_bytes() == LARGE
    assert (Path(folder) / "snapshot.safetensors").read_bytes() == SMALL
    later = result(opener(proxy.through(bucket), checkpoint))
    assert later == {"folder": folder, "read": []}  # nor is the copy read again to verify it
    assert data_reads(proxy).total() == 4


def test_a_damaged_object_is_found_once_for_all_processes_of_a_machine(bucket, proxy, tmp_path, cache_home):
    store = Store(bucket)
    checkpoint = commit(store, tmp_path / "files")
    nonce = next(iter(checkpoint.manifest.files)).partition("/")[0]
    store.files.write(f"checkpoints/10/{checkpoint.key}/{nonce}/snapshot.safetensors", SMALL[:-1] + b"x")
    hold_until_all_wait(proxy, cache_home, 3)
    openers = [opener(proxy.through(bucket), checkpoint) for _ in range(4)]
    for process in openers:
        assert "snapshot.safetensors was altered; set aside" in result(process)["damaged"]
    assert data_reads(proxy) == {"snapshot.safetensors": 1, "state.safetensors": 3}
    assert len(store.files.names("aside")) == 1 and store.get(checkpoint.key, 10) is None


def test_a_process_that_is_killed_while_it_copies_leaves_nothing_half_done(bucket, proxy, tmp_path, cache_home):
    checkpoint = commit(Store(bucket), tmp_path / "files")
    go_on = threading.Event()
    proxy.before = lambda name: go_on.wait(60) if name == "state.safetensors" and len(proxy.reads) > 2 else None
    killed = opener(proxy.through(bucket), checkpoint)
    wait_for(lambda: data_reads(proxy)["state.safetensors"] >= 1 and bool(list(cache_home.rglob("*.part/*"))))
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    go_on.set()
    folder = Path(result(opener(proxy.through(bucket), checkpoint))["folder"])
    assert (folder / "state.safetensors").read_bytes() == LARGE
    assert not list(cache_home.rglob("*.part"))


def test_copies_of_all_stores_share_one_budget(s3, tmp_path, monkeypatch, cache_home):
    monkeypatch.setenv("RAYSWEEP_CACHE_GIB", str(1.5 * len(LARGE) / 2**30))
    opened = []
    for _ in range(3):
        store = Store(s3.format(uuid.uuid4().hex[:8]))
        opened.append(store.open(commit(store, tmp_path / "files")) / "state.safetensors")
        assert opened[-1].read_bytes() == LARGE
        node_cache.release()
    assert [file.exists() for file in opened] == [False, False, True]


@pytest.mark.parametrize("text", ["many", "-1", "nan"])
def test_a_wrong_budget_is_one_line_and_exit_code_2(storage, tmp_path, monkeypatch, capsys, text):
    monkeypatch.setenv("RAYSWEEP_CACHE_GIB", text)
    assert store_command.main(["ls", "--storage", storage]) == 2
    message = capsys.readouterr().err
    assert f"RAYSWEEP_CACHE_GIB={text}: give the GiB" in message and "Traceback" not in message


def test_a_cache_that_a_user_deletes_is_made_again(bucket, tmp_path, cache_home):
    store = Store(bucket)
    checkpoint = commit(store, tmp_path / "files")
    for _ in range(2):
        assert (store.open(checkpoint) / "state.safetensors").read_bytes() == LARGE
        shutil.rmtree(cache_home)


# --- the store's cache


def test_the_cache_of_a_folder_is_in_it_and_that_of_a_bucket_is_the_user_s(bucket, tmp_path, cache_home):
    assert Store(str(tmp_path / "store")).cache == tmp_path / "store" / "cache"
    before = os.umask(0)
    try:
        cache = Store(bucket).cache
    finally:
        os.umask(before)
    assert cache.parent == cache_home / "raysweep" and len(cache.name) == 16
    assert all(folder.stat().st_mode & 0o777 == 0o700 for folder in (cache, cache.parent, cache_home))


def test_each_store_has_a_cache_whatever_credentials_it_is_opened_with(bucket):
    here = Store(bucket)
    assert Store(bucket.replace("s3://", "s3://KEY:SECRET@")).cache == here.cache
    assert Store(bucket.replace("region=us-east-1", "region=eu-west-1")).cache == here.cache
    assert Store(bucket.replace("?", "/below?")).cache != here.cache
    assert Store(bucket.replace("127.0.0.1", "localhost")).cache != here.cache


@pytest.mark.parametrize("how", ["link", "writable"])
def test_a_planted_cache_is_refused_in_one_line(bucket, tmp_path, cache_home, how):
    checkpoint = commit(Store(bucket), tmp_path / "files")
    (tmp_path / "planted").mkdir()
    cache_home.mkdir()
    if how == "link":
        (cache_home / "raysweep").symlink_to(tmp_path / "planted")
    else:
        (cache_home / "raysweep").mkdir()
        (cache_home / "raysweep").chmod(0o777)
    for use in (lambda: Store(bucket).cache, lambda: Store(bucket).open(checkpoint)):
        with pytest.raises(UserError, match="raysweep (is a symbolic link|can be written by other users)") as refusal:
            use()
        assert "\n" not in str(refusal.value)
    assert not any((tmp_path / "planted").iterdir())
    folder = Store(str(tmp_path / "store"))  # needs no cache of this machine
    assert folder.open(commit(folder, tmp_path / "files")).is_dir()


# --- storage in a folder


def test_a_folder_s_checkpoint_is_read_once_for_all_processes_of_a_machine(tmp_path):
    store = Store(str(tmp_path / "store"))
    checkpoint = commit(store, tmp_path / "files")
    results = [result(process) for process in [opener(store.uri, checkpoint) for _ in range(4)]]
    assert sorted(name for one in results for name in one["read"]) == ["snapshot.safetensors", "state.safetensors"]
    assert len({one["folder"] for one in results}) == 1


def test_what_is_written_into_a_verified_checkpoint_is_noticed(tmp_path):
    store = Store(str(tmp_path / "store"))
    file = store.open(checkpoint := commit(store, tmp_path / "files")) / "snapshot.safetensors"
    time.sleep(0.05)  # a kernel's clock for files is this coarse
    file.write_bytes(SMALL[:-1] + b"x")
    with pytest.raises(CheckpointDamaged, match="snapshot.safetensors was altered"):
        store.open(checkpoint)
    assert store.get(checkpoint.key, 10) is None


def test_verify_reads_every_byte_of_what_was_verified_before(tmp_path):
    store = Store(str(tmp_path / "store"))
    store.open(commit(store, tmp_path / "files"))
    read, active = [], [True]
    sys.addaudithook(lambda event, arguments: active and event == "open" and read.append(str(arguments[0])))
    assert [wrong for _, wrong in store.verify()] == [None]
    active.clear()
    names = [Path(path).name for path in read if path.endswith(".safetensors")]
    assert sorted(names) == ["snapshot.safetensors", "state.safetensors"]


def test_a_checkpoint_that_was_committed_again_is_not_set_aside(tmp_path):
    store = Store(str(tmp_path / "store"))
    damaged, again = commit(store, tmp_path / "files"), commit(store, tmp_path / "files")
    store.set_aside(damaged, "was altered")
    assert store.get(again.key, 10).manifest.files == again.manifest.files
