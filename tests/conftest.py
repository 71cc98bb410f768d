"""What must be set before Ray, MLflow or torch are imported, and what several tests share."""

import os

os.environ.update(
    OMP_NUM_THREADS="1",
    RAY_USAGE_STATS_ENABLED="0",
    MLFLOW_DISABLE_TELEMETRY="true",
    HF_HUB_OFFLINE="1",
    RAY_worker_niceness="0",  # Ray's workers are nice to others, and starve beside another test
    AWS_ACCESS_KEY_ID="nobody",
    AWS_SECRET_ACCESS_KEY="nothing",
    AWS_EC2_METADATA_DISABLED="true",
)

import socket  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
import uuid  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from pathlib import Path  # noqa: E402

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

settings.register_profile("tests", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("tests")

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Encoded data and reference statistics, made once for all tests, by whichever process comes first."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return tmp_path_factory.mktemp("cache")
    shared = tmp_path_factory.getbasetemp().parent / "cache"
    shared.mkdir(exist_ok=True)
    return shared


@pytest.fixture
def memory_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, where this machine has one: thousands of small files are flushed to the disk."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as folder:
        yield Path(folder)


@pytest.fixture
def write_space(tmp_path: Path):
    """Write a search space and return its path."""

    def write(text: str, name: str = "space.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """A bucket on an S3-compatible server of this machine, as pyarrow names it; `{}` stands for a folder.

    The server is a process of its own: in this one, moto's mocks in other tests would empty it.
    """
    from pyarrow.fs import S3FileSystem

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{free.getsockname()[1]}"
    host, port = place.split(":")
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", host, "-p", port],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    options = {"endpoint_override": place, "scheme": "http", "region": "us-east-1"}
    deadline = time.monotonic() + 120
    while True:
        try:
            S3FileSystem(**options, allow_bucket_creation=True).create_dir("bucket")
            break
        except OSError:
            assert time.monotonic() < deadline and server.poll() is None, "moto's server does not answer"
            time.sleep(0.1)
    yield f"s3://bucket/{{}}?endpoint_override={place}&scheme=http&region=us-east-1"
    server.terminate()
    server.wait()


@pytest.fixture(params=["folder", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a store may lie: what `--storage` takes. A new place for each test."""
    if request.param == "folder":
        return str(tmp_path / "store")
    return request.getfixturevalue("s3").format(uuid.uuid4().hex[:8])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, so that all processes end together."""
    items.sort(key=lambda item: item.get_closest_marker("ray") is None)
