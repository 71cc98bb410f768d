"""Every command in the documentation is run: `make commands`.

They run one after the other in one folder, in the order in which a new user reads the pages. What the pages leave to
the reader (KEY, STUDY, BUCKET, …) is filled in. Sweeps of the README and the tutorial run as written. In other pages a
laptop's sweep runs at the smoke profile's size, and one at the paper's size is planned. ELSEWHERE lists the commands
that other suites run, and those that need what this machine has not.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest
from docs.pages import DOCS, PAGES, ROOT, commands, commands_of_spaces, page_name

pytestmark = [pytest.mark.commands, pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1200)]

ELSEWHERE = {  # how a command begins -> who runs it, or why nobody does
  r"make (test|browser|cluster|chaos)$": ".ci/run runs it, whole or in a short form",
  r"make commands$": "this suite",
  r"make bench$": "tests/benchmarks runs its scripts at tiny sizes; whole, it takes an idle machine",
  r"make docs$": "tests/docs/test_docs.py builds the site",
  r"git clone": ".ci/run begins with a clone",
  r"\.venv/bin/pytest": "make test runs the same tests",
  r"ray |RAY_AUTH_MODE": "tests/cluster runs it on three hosts",
  r"docker |kubectl ": "needs an image registry and Kubernetes; tests/raysweep/test_cluster_files.py checks the files",
  r"raysweep prepare /data/ILSVRC": "needs ImageNet; tests/raysweep/test_prepare.py prepares a small archive like it",
  r"raysweep probe model.safetensors": "needs REPA's weights; tests/raysweep/test_probe_command.py probes small ones",
}  # fmt: skip
SERVERS = {r"mlflow ui": 5000, r"optuna-dashboard ": 8080}  # they run until the suite ends; how they begin -> port
EXIT_CODES = {"raysweep doctor --cluster cluster.yaml": 2}  # nobody has filled in that file
MORE = {  # how a command begins -> what is added to it
  r"python -m raysweep\.run (?!.*--profile)": "--plan",  # a sweep at the size of the paper
  r"python benchmarks/simulate": "--seeds 3 --noise 0.1",  # a hundred seeds take ten minutes
  r"aws ec2 create-placement-group": "--generate-cli-skeleton output",  # checks the words; moto has no such groups
}  # fmt: skip
AS_WRITTEN = ("README.md", "docs/tutorial.md")  # a sweep in other pages runs at the smoke profile's size
READ_FIRST = [ROOT / "README.md", DOCS / "tutorial.md", *sorted((DOCS / "how-to").glob("*.md"))]


def all_commands() -> list[tuple[str, str]]:
    """(page, command), each command once, in the order of reading."""
    pages = [*READ_FIRST, *(page for page in PAGES if page not in READ_FIRST)]
    lines = [(page, line) for page in pages for line in commands(page)] + commands_of_spaces()
    first_seen = {line: page_name(page) for page, line in reversed(lines)}
    return [(first_seen[line], line) for line in dict.fromkeys(line for _, line in lines)]


def reason_elsewhere(line: str) -> str | None:
    return next((reason for start, reason in ELSEWHERE.items() if re.match(start, line)), None)


class Shell:
    """A user's shell in a folder that looks like a checkout, but for what the commands write.

    `pip install` writes into a folder of its own, because other tests run in the same environment.
    """

    def __init__(self, folder: Path):
        self._folder, self._variables = folder / "raysweep", folder / "variables.sh"
        self._servers: list[subprocess.Popen[bytes]] = []
        self._folder.mkdir()
        for entry in ROOT.iterdir():
            if entry.name not in ("docs", "runs", "data"):
                (self._folder / entry.name).symlink_to(entry)
        (self._folder / "docs").mkdir()  # commands write pictures there
        self._added, scripts = folder / "added", Path(sysconfig.get_path("scripts"))
        self._environment = {
            **os.environ,
            "PATH": f"{self._added / 'bin'}:{scripts}:{os.environ['PATH']}",
            "PYTHONPATH": str(self._added / Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)),
            "PIP_CONSTRAINT": str(ROOT / "constraints.txt"),
            "DEBIAN_FRONTEND": "noninteractive",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        self._variables.write_text("")

    def run(self, line: str, expected: int = 0) -> str:
        """Run a line after those before it, whose `export`s hold; returns what it printed."""
        line = re.sub(r"^pip install\b", f"pip install --prefix {self._added}", line)
        script = f"source {self._variables}\n{line}\ncode=$?\nexport -p > {self._variables}\nexit $code"
        done = subprocess.run(
            ["bash", "-c", script], cwd=self._folder, env=self._environment, capture_output=True, text=True
        )
        assert done.returncode == expected, f"exit code {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout + done.stderr

    def serve(self, line: str, port: int) -> None:
        """Start a server and wait until it answers."""
        with socket.socket() as free:
            free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            free.bind(("127.0.0.1", port))  # fails where another server has it
        log = self._folder / f"server-{port}.log"
        with log.open("wb") as output:
            server = subprocess.Popen(
                ["bash", "-c", line],
                cwd=self._folder,
                env=self._environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._servers.append(server)
        until = time.monotonic() + 120
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert server.poll() is None and time.monotonic() < until, log.read_text()[-3000:]
            time.sleep(0.2)

    def study(self, pattern: str) -> str:
        """The full name of a study that was run."""
        return next(self._folder.glob(f"runs/studies/{pattern}")).name

    def close(self) -> None:
        for server in self._servers:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    shell = Shell(tmp_path_factory.mktemp("commands"))
    yield shell
    shell.close()


@pytest.fixture(scope="module")
def aws(shell: Shell, s3: str) -> dict[str, Callable[[], str]]:
    """AWS's command line, on a server of this machine, and what it fills in."""
    shell.run("pip install awscli")
    endpoint = "http://" + re.findall(r"endpoint_override=([\w.:]+)", s3)[0]
    shell.run(f"export AWS_ENDPOINT_URL={endpoint}")
    ec2 = boto3.client("ec2", region_name="us-east-1", endpoint_url=endpoint)
    groups = [{"Name": "group-name", "Values": ["raysweep"]}]
    return {
        "VPC": lambda: ec2.describe_vpcs()["Vpcs"][0]["VpcId"],
        "SG": lambda: ec2.describe_security_groups(Filters=groups)["SecurityGroups"][0]["GroupId"],
        "BUCKET": lambda: "raysweep-of-a-reader",
        "MY_ADDRESS": lambda: "192.0.2.1",
    }


def fill_in(line: str, values: dict[str, Callable[[], str]]) -> str:
    """The line with the words that a reader replaces."""
    return re.sub(rf"\b({'|'.join(values)})\b", lambda word: values[word[0]](), line)


@pytest.mark.parametrize("page, line", all_commands(), ids=lambda value: value)
def test_the_command_runs(page: str, line: str, shell: Shell, request: pytest.FixtureRequest):
    if reason := reason_elsewhere(line):
        pytest.skip(reason)
    if line.startswith("apt-get") and os.geteuid():
        pytest.skip("takes root")
    values = {"KEY": lambda: "adcc8358", "STUDY": lambda: shell.study("table5-laptop-*"), "FOLDER": lambda: "encoder"}
    if line.startswith("aws "):
        values = request.getfixturevalue("aws")
    line = fill_in(line, values)
    if port := next((port for start, port in SERVERS.items() if re.match(start, line)), None):
        shell.serve(line, port)
        return
    more = [more for start, more in MORE.items() if re.match(start, line)]
    if "--profile laptop" in line and page not in AS_WRITTEN:
        more.append("--profile smoke")  # of two profiles the last counts
    output = shell.run(" ".join([line, *more]), EXIT_CODES.get(line, 0))
    assert "Traceback" not in output


def test_commands_that_others_run_are_still_documented():
    for start in ELSEWHERE:
        assert any(re.match(start, line) for _, line in all_commands()), start
