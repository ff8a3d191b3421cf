"""Hosts on this machine for tests: network, PID, mount and UTS namespaces, joined by a bridge.

A host has an address, a name that all hosts resolve, and its own /tmp/ray and /dev/shm. Needs root on Linux, with
iproute2 and util-linux.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from filelock import FileLock
from processes import until

NETWORK = "10.77.0"
BRIDGE = "dgbridge"
OUTSIDE = f"{NETWORK}.254"  # the address of this machine for its hosts
# Killing process 1 of a host ends all of its processes. It waits for those that have lost their parent: otherwise they
# would remain as zombies, and `ray job stop` would wait for them.
ENTER = """
set -e
hostname "$HOST_NAME"
mkdir -p /tmp/ray
mount --bind "$HOST_FOLDER/ray" /tmp/ray
mount --bind "$HOST_FOLDER/../hosts" /etc/hosts
mount -t tmpfs -o size=2g tmpfs /dev/shm
sleep infinity &
touch "$HOST_FOLDER/on"
wait
"""


def why_not() -> str | None:
    """Why hosts cannot be made here; None where they can."""
    for program in ("ip", "nsenter", "setpriv", "unshare"):
        if shutil.which(program) is None:
            return f"needs {program}: apt-get install iproute2 util-linux"
    if os.geteuid() != 0:
        return "needs root, to make network namespaces"
    tried = subprocess.run(["unshare", "--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "true"], check=False)
    return None if tried.returncode == 0 else "namespaces are not allowed here"


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


class Started:
    """A command on a host.

    Attributes:
        log: the file of what it prints.
    """

    def __init__(self, entered: subprocess.Popen[bytes], log: Path) -> None:
        self.entered = entered  # nsenter; the command is its child process, and process groups end at it
        self.log = log

    def send(self, number: int) -> None:
        """Send a signal to the command alone."""
        for process in psutil.Process(self.entered.pid).children():
            process.send_signal(number)

    def wait(self, seconds: float) -> int:
        """Wait until the command has ended, and return its exit status."""
        return self.entered.wait(seconds)

    def running(self) -> bool:
        """Whether the command has not ended."""
        return self.entered.poll() is None


class Host:
    """One host; its processes live until it is powered off."""

    def __init__(self, number: int, folder: Path) -> None:
        self.number, self.name, self.address = number, f"n{number}", f"{NETWORK}.{number}"
        self.folder = folder / self.name
        (self.folder / "ray").mkdir(parents=True)
        self.link = f"dgveth{number}"
        ip("netns", "add", self.namespace)
        ip("link", "add", self.link, "type", "veth", "peer", "name", "eth0", "netns", self.namespace)
        ip("link", "set", self.link, "master", BRIDGE, "up")
        ip("-n", self.namespace, "addr", "add", f"{self.address}/24", "dev", "eth0")
        ip("-n", self.namespace, "link", "set", "eth0", "up")
        ip("-n", self.namespace, "link", "set", "lo", "up")
        self.machine: subprocess.Popen[str] | None = None
        self.entered: list[subprocess.Popen[bytes]] = []

    @property
    def namespace(self) -> str:
        return f"dgunet-{self.name}"

    def power_on(self) -> None:
        """Start process 1 of the host."""
        assert self.machine is None
        on = self.folder / "on"
        on.unlink(missing_ok=True)
        enter = ["setpriv", "--pdeathsig", "KILL"]  # a test that is killed leaves no process on its hosts
        enter += ["nsenter", f"--net=/run/netns/{self.namespace}", "unshare", "--mount", "--uts", "--ipc", "--pid"]
        enter += ["--fork", "--kill-child", "--mount-proc", "bash", "-c", ENTER]
        variables = {**os.environ, "HOST_NAME": self.name, "HOST_FOLDER": str(self.folder)}
        log = self.folder / "machine.log"
        with log.open("w") as output:
            machine = self.machine = subprocess.Popen(enter, env=variables, text=True, stdout=output, stderr=output)
        until(lambda: on.exists() or machine.poll() is not None, 60)
        assert machine.poll() is None, f"host {self.name} did not start: {log.read_text()}"
        (self.init,) = psutil.Process(machine.pid).children()

    def start(self, *command: str, environment: Mapping[str, str], folder: Path, log: Path) -> Started:
        """Start a command in a folder of the host, with these variables alone; its output is appended to `log`."""
        enter = ["nsenter", f"--target={self.init.pid}", "--net", "--mount", "--uts", "--ipc", "--pid"]
        enter += ["env", f"--chdir={folder}", "-i", *(f"{name}={value}" for name, value in environment.items())]
        with log.open("a") as output:
            entered = subprocess.Popen([*enter, *command], start_new_session=True, stdout=output, stderr=output)
        self.entered.append(entered)
        return Started(entered, log)

    def power_off(self) -> None:
        """Kill all processes of the host at once."""
        if self.machine is not None:
            with suppress(psutil.NoSuchProcess):
                self.init.kill()
            for process in [*self.entered, self.machine]:
                process.wait(60)
            self.entered, self.machine = [], None

    def cut(self) -> None:
        """Take the host off the network."""
        ip("link", "set", self.link, "down")

    def join(self) -> None:
        """Put the host on the network again."""
        ip("link", "set", self.link, "up")


@contextmanager
def hosts(count: int, folder: Path) -> Iterator[list[Host]]:
    """Hosts n1, n2, …, powered on; nothing of them is left at the end.

    Their addresses and names are the same in each process, so another process that has hosts is waited for.
    """
    with FileLock(Path(tempfile.gettempdir(), "dgunet-hosts.lock")):
        yield from _made(count, folder)


def _made(count: int, folder: Path) -> Iterator[list[Host]]:
    names = [f"{OUTSIDE} outside", *(f"{NETWORK}.{number} n{number}" for number in range(1, count + 1))]
    (folder / "hosts").write_text("".join(f"{line}\n" for line in ["127.0.0.1 localhost", *names]))
    made: list[Host] = []
    _remove_remains(count)
    ip("link", "add", BRIDGE, "type", "bridge")
    try:
        ip("addr", "add", f"{OUTSIDE}/24", "dev", BRIDGE)
        ip("link", "set", BRIDGE, "up")
        for number in range(1, count + 1):
            made.append(Host(number, folder))
            made[-1].power_on()
        yield made
    finally:
        for host in made:
            host.power_off()
            ip("netns", "del", host.namespace)
        ip("link", "del", BRIDGE)


def _remove_remains(count: int) -> None:
    """Remove what a killed test has left."""
    numbers = range(1, count + 1)
    names = [("netns", "del", f"dgunet-n{number}") for number in numbers]
    names += [("link", "del", f"dgveth{number}") for number in numbers]
    for arguments in [*names, ("link", "del", BRIDGE)]:
        subprocess.run(["ip", *arguments], check=False, capture_output=True)
