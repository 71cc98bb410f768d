"""Several hosts on one machine: each is a set of network, PID, mount, UTS and IPC namespaces with an sshd.

A host sees this machine's files, but its home folder, /tmp/ray and /dev/shm are its own. Its processes are its own too:
`ray stop`, which ends every Ray process that it can see, ends those of one host. Needs root, iproute2, openssh-server,
rsync and tmux.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

NET = "10.78.0"
BRIDGE = "rslab"
SSH_S = 60.0  # for a host's sshd to answer
TOOLS = ("ip", "unshare", "mount", "rsync", "ssh", "ssh-keygen", "tmux", "/usr/sbin/sshd")


def missing() -> str | None:
    """Why there can be no lab on this machine; None if there can."""
    if os.geteuid():
        return "needs root"
    absent = [tool for tool in TOOLS if shutil.which(tool) is None]
    if absent:
        return f"needs {', '.join(absent)}"
    script = f"""
        set -e
        ip link add {BRIDGE} type bridge
        ip link add {BRIDGE}v0 type veth peer name eth0
        mount -t tmpfs tmpfs /mnt
        mkdir /mnt/upper /mnt/work
        mount -t overlay overlay -o lowerdir={Path.home()},upperdir=/mnt/upper,workdir=/mnt/work {Path.home()}
    """
    trial = subprocess.run(["unshare", "--mount", "--net", "--pid", "--fork", "sh", "-c", script], capture_output=True)
    return f"not allowed here: {trial.stderr.decode().strip()}" if trial.returncode else None


class Lab:
    """Hosts 0, 1, … at `address(n)`; the first is to be the head. As a context manager it removes all of them.

    Args:
        folder: where the hosts' state goes.
        source: the project's folder. Its environment is the one that this runs in.
        count: how many hosts.
    """

    def __init__(self, folder: Path, source: Path, count: int = 3):
        self.folder, self.source, self.count = folder, source, count
        self.key = folder / "key"
        self.home = folder / "laptop"  # the home folder of the user who types `ray up`
        self._inits: dict[int, int] = {}  # host -> pid of the process that holds its namespaces

    def __enter__(self) -> Lab:
        self._clear()
        (self.home / ".ray").mkdir(parents=True)
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.key)
        Path("/run/sshd").mkdir(exist_ok=True)
        Path("/tmp/ray").mkdir(exist_ok=True)  # each host mounts its own here
        try:
            _run("ip", "link", "add", BRIDGE, "type", "bridge")
            _run("ip", "addr", "add", f"{NET}.254/24", "dev", BRIDGE)
            _run("ip", "link", "set", BRIDGE, "up")
            for host in range(self.count):
                self._wire(host)
                self.boot(host)
        except BaseException:
            self._clear()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._clear()

    def address(self, host: int) -> str:
        """A host's IP address, for the other hosts and for this machine."""
        return f"{NET}.{10 + host}"

    def boot(self, host: int) -> None:
        """Switch a host on. Its disk is as it was when it was switched off; at first it is empty."""
        own = self.folder / f"host{host}"
        for part in ("upper", "work", "ray"):
            (own / part).mkdir(parents=True, exist_ok=True)
        new = not (own / "sshd_config").exists()
        if new:
            _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", own / "host_key")
            shutil.copy(self.key.with_suffix(".pub"), own / "authorized_keys")
            settings = {
                "HostKey": own / "host_key",
                "AuthorizedKeysFile": own / "authorized_keys",
                "ListenAddress": self.address(host),
                "PermitRootLogin": "prohibit-password",
                "PasswordAuthentication": "no",
                "StrictModes": "no",
                "UsePAM": "no",
                "PidFile": "none",
                "Subsystem": "sftp internal-sftp",
            }
            (own / "sshd_config").write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
        home = Path.home()
        script = f"""
            set -e
            mount --make-rprivate /
            hostname rslab{host}
            mount -t tmpfs -o size=3g tmpfs /dev/shm
            mount -t overlay overlay -o lowerdir={home},upperdir={own}/upper,workdir={own}/work {home}
            mount --bind {own}/ray /tmp/ray
            {f"rm -rf {home}/.ray" if new else ""}
            exec /usr/sbin/sshd -D -e -f {own}/sshd_config
        """
        enter = ["ip", "netns", "exec", self._name(host), "unshare", "--mount", "--uts", "--ipc", "--pid", "--fork"]
        with (own / "sshd.log").open("ab") as log:
            process = subprocess.Popen(
                [*enter, "--mount-proc", "--kill-child=SIGKILL", "bash", "-c", script],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._inits[host] = process.pid
        self._await_ssh(host)

    def power_off(self, host: int) -> None:
        """Kill all processes of a host at once, as a power cut does."""
        os.kill(self._inits.pop(host), signal.SIGKILL)
        for pid in _run("ip", "netns", "pids", self._name(host)).split():
            _kill(int(pid))

    def cut(self, host: int) -> None:
        """Take the host's link down."""
        _run("ip", "-n", self._name(host), "link", "set", "eth0", "down")

    def mend(self, host: int) -> None:
        """Put the host's link up again, with the default route, which went with it: Ray finds its own address by it."""
        _run("ip", "-n", self._name(host), "link", "set", "eth0", "up")
        _run("ip", "-n", self._name(host), "route", "replace", "default", "via", f"{NET}.254")

    def on(self, host: int, command: str, timeout: float = 60, check: bool = True) -> str:
        """Run a command on a host by ssh; returns its output."""
        return _run(*self._ssh(host), command, timeout=timeout, check=check)

    def started_on(self, host: int, command: str, log: Path) -> subprocess.Popen[bytes]:
        """Start a command on a host by ssh, without waiting for it; its output goes to `log`."""
        with log.open("wb") as out:
            return subprocess.Popen([*self._ssh(host), command], stdout=out, stderr=subprocess.STDOUT)

    def laptop(self, *command: str, timeout: float = 600, check: bool = True) -> str:
        """Run a command on this machine, in the project's folder, as the user would; returns its output."""
        return _run(*command, env=self._user(), cwd=self.source, timeout=timeout, check=check)

    def started_on_laptop(self, *command: str) -> subprocess.Popen[bytes]:
        """Start a command as the user would, in a process group of its own, without waiting for it."""
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return subprocess.Popen(command, env=self._user(), cwd=self.source, start_new_session=True, **quiet)

    def processes(self, host: int) -> list[str]:
        """`pid command` of the processes on a host, without sshd and this call's own."""
        lines = self.on(host, "ps -eo pid=,args=").splitlines()
        return [line.strip() for line in lines if not any(own in line for own in ("sshd", "ps -eo", "bash -c"))]

    def install(self, host: int) -> None:
        """Link this environment to where deploy/node.sh looks for one, so that it installs nothing."""
        venv = Path.home() / "raysweep" / ".venv"
        links = [f"ln -sfn {Path(sys.prefix) / part} {venv / part}" for part in ("bin", "lib", "pyvenv.cfg")]
        fresh = f"touch -d '+1 year' {venv / 'laptop'} {venv / 'dev'}"
        self.on(host, "; ".join([f"mkdir -p {venv}", *links, fresh]))

    def _user(self) -> dict[str, str]:
        env = os.environ | {"HOME": str(self.home), "RAY_USAGE_STATS_ENABLED": "0", "PYTHONWARNINGS": "ignore"}
        return env | {"PATH": f"{Path(sys.executable).parent}:{env['PATH']}"}

    def _ssh(self, host: int) -> list[str]:
        options = ["BatchMode=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR"]
        options += ["ConnectTimeout=5"]
        return ["ssh", "-i", str(self.key), *(f"-o{option}" for option in options), f"root@{self.address(host)}"]

    def _wire(self, host: int) -> None:
        name, cable = self._name(host), f"{BRIDGE}v{host}"
        _run("ip", "netns", "add", name)
        _run("ip", "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", name)
        _run("ip", "link", "set", cable, "master", BRIDGE, "up")
        _run("ip", "-n", name, "addr", "add", f"{self.address(host)}/24", "dev", "eth0")
        for link in ("lo", "eth0"):
            _run("ip", "-n", name, "link", "set", link, "up")
        _run("ip", "-n", name, "route", "add", "default", "via", f"{NET}.254")

    def _await_ssh(self, host: int) -> None:
        until = time.monotonic() + SSH_S
        while time.monotonic() < until:
            if subprocess.run([*self._ssh(host), "true"], capture_output=True).returncode == 0:
                return
            time.sleep(0.2)
        raise RuntimeError(f"host {host} did not come up: {self.folder}/host{host}/sshd.log")

    def _name(self, host: int) -> str:
        return f"rslab{host}"

    def _clear(self) -> None:
        for pid in self._inits.values():
            _kill(pid)
        self._inits.clear()
        for host in range(self.count):
            name = self._name(host)
            for pid in _run("ip", "netns", "pids", name, check=False).split():
                if pid.isdigit():
                    _kill(int(pid))
            # The cable may outlive its namespace for a while.
            subprocess.run(["ip", "link", "del", f"{BRIDGE}v{host}"], capture_output=True)
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
        subprocess.run(["ip", "link", "del", BRIDGE], capture_output=True)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _run(*command: str | Path, timeout: float = 60, check: bool = True, **options: object) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=timeout,
        **options,  # type: ignore[call-overload]
    )
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.returncode}\n{done.stdout[-4000:]}")
    return str(done.stdout)
