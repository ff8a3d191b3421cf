"""infra/slurm/dgunet.sbatch under a real slurmctld, with a slurmd on each host."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest
from checkout import sha256
from hosts import OUTSIDE, Host
from processes import KILLED_WITH_THE_TESTS, until
from site_of_tests import Site, site, why_no_site

missing = [
    name for name in ("slurmctld", "slurmd", "munged", "sbatch") if not shutil.which(name, path="/usr/sbin:/usr/bin")
]
reason = why_no_site() or (
    missing and f"needs {', '.join(missing)}: apt-get install slurmctld slurmd slurm-client munge"
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.cluster,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(bool(reason), reason=str(reason)),
]
CONFIGURATION = """
ClusterName=dgunet
SlurmctldHost={name}({outside})
SlurmUser=root
SlurmdUser=root
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
MpiDefault=none
ReturnToService=2
SlurmdTimeout=30
KillWait=5
NodeName=n[1-3] NodeAddr={network}.[1-3] CPUs=2 Sockets=1 CoresPerSocket=2 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class Slurm:
    """A controller on this machine, and a slurmd on each host."""

    def __init__(self, built: Site, stack: ExitStack) -> None:
        self.folder = built.folder / "slurm"
        (self.folder / "state").mkdir(parents=True)
        self.configuration = self.folder / "slurm.conf"
        self.configuration.write_text(
            CONFIGURATION.format(
                name=socket.gethostname(), outside=OUTSIDE, folder=self.folder, network=OUTSIDE.rpartition(".")[0]
            ).lstrip()
        )
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        self.built, self.stack = built, stack
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        munged = ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={self.folder}/munge.socket"]
        munged += [f"--{name}-file={self.folder}/munge.{name}" for name in ("pid", "log", "seed")]
        self._serve(munged, "munged")
        until((self.folder / "munge.socket").exists, 30)
        self._serve(["slurmctld", "-D", "-f", str(self.configuration)], "slurmctld")
        for host in built.hosts:
            self.start(host)
        self.wait_for_nodes(3)

    def _serve(self, command: list[str], name: str) -> None:
        with (self.folder / f"{name}.log").open("w") as log:
            server = subprocess.Popen(
                [*KILLED_WITH_THE_TESTS, *command], stdout=log, stderr=log, start_new_session=True, env=self.variables
            )

        def stop() -> None:
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
            server.wait()

        self.stack.callback(stop)

    @property
    def variables(self) -> dict[str, str]:
        return {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "SLURM_CONF": str(self.configuration), "HOME": "/root"}

    def start(self, host: Host) -> None:
        """Start slurmd on a host."""
        host.start(
            "slurmd", "-D", "-N", host.name, "-f", str(self.configuration),
            environment=self.variables, folder=self.folder, log=self.folder / f"slurmd-{host.name}.log",
        )  # fmt: skip

    def run(self, *command: str) -> str:
        """Run a command of Slurm in the checkout; return what it prints."""
        omitted = ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_MODE")
        variables = {name: value for name, value in self.built.environment.items() if name not in omitted}
        variables["SLURM_CONF"] = str(self.configuration)
        done = subprocess.run(
            command, cwd=self.built.checkout, env=variables, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def submit(self) -> str:
        """Submit the job to two nodes; return its number."""
        script = "infra/slurm/dgunet.sbatch"
        return self.run("sbatch", "--parsable", "--nodes=2", "--output=slurm-%j.log", script).strip()

    def output(self, job: str) -> str:
        """What a job has printed."""
        path = self.built.checkout / f"slurm-{job}.log"
        return path.read_text() if path.exists() else ""

    def state(self, job: str) -> str:
        """The state of a job in Slurm's word, such as RUNNING."""
        shown = self.run("scontrol", "show", "job", job)
        return shown.partition("JobState=")[2].split()[0]

    def wait_for_checkpoint(self, job: str) -> None:
        """Wait until a job has stored a new checkpoint."""
        self.built.wait_for_checkpoint_while(lambda: self.state(job) in ("RUNNING", "PENDING"))
        assert self.state(job) == "RUNNING", self.output(job)[-5000:]

    def set_time_left(self, job: str, minutes: int) -> None:
        """Set the time limit of a job to so many minutes from now, or up to one more."""
        shown = self.run("scontrol", "show", "job", job)
        hours, passed, _ = shown.partition("RunTime=")[2].split()[0].split(":")
        self.run("scontrol", "update", f"JobId={job}", f"TimeLimit={60 * int(hours) + int(passed) + minutes}")

    def wait_for_end(self, job: str, seconds: float) -> None:
        """Wait until a job has ended. While it runs, Slurm also calls it COMPLETING, SIGNALING and more."""
        until(lambda: self.state(job) in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"), seconds)

    def wait_until_saved(self, job: str) -> None:
        """Wait until a job that was asked to stop has saved a checkpoint and left."""
        self.wait_for_end(job, 180)
        assert "asked to stop: saving" in self.output(job)
        assert "the same command continues" in self.output(job)

    def wait_for_nodes(self, idle: int) -> None:
        """Wait until this number of nodes is idle."""
        until(lambda: self.run("sinfo", "--noheader", "--states=idle", "--format=%D").strip() == str(idle), 120)

    def hosts_of(self, job: str) -> list[Host]:
        """The hosts of a job; the driver is on the first."""
        nodes = self.run("squeue", "--noheader", "--format=%N", "--job", job).strip()
        names = self.run("scontrol", "show", "hostnames", nodes).split()
        numbers = [int(name.removeprefix("n")) for name in names]
        assert numbers == sorted(numbers)
        return [self.built.hosts[number - 1] for number in numbers]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with site(tmp_path_factory.mktemp("site"), 1500) as built, ExitStack() as stack:
        yield Slurm(built, stack)


def test_a_job_saves_continues_and_survives_nodes(slurm: Slurm) -> None:
    job = slurm.submit()
    slurm.wait_for_checkpoint(job)
    other = slurm.hosts_of(job)[1]
    other.cut()
    time.sleep(20)  # how long the cut lasts
    other.join()
    slurm.wait_for_checkpoint(job)
    assert len(slurm.hosts_of(job)) == 2, "Slurm and Ray wait for longer than that"
    slurm.set_time_left(job, minutes=4)  # fewer than the 5 of --signal=B:TERM@300, so the signal is due
    slurm.wait_until_saved(job)
    slurm.wait_for_nodes(3)

    job = slurm.submit()
    slurm.wait_for_checkpoint(job)
    other = slurm.hosts_of(job)[1]
    other.cut()
    cut_at = time.monotonic()
    until(lambda: len(slurm.hosts_of(job)) == 1, 120)
    slurm.wait_for_checkpoint(job)  # of the node that goes on alone
    slurm.run("scancel", "--batch", "--signal=TERM", job)
    slurm.wait_until_saved(job)
    time.sleep(max(0.0, cut_at + 90 - time.monotonic()))  # the cut lasts 90 s
    other.join()
    slurm.run("scontrol", "update", f"NodeName={other.name}", "State=RESUME")  # Slurm itself asks after minutes
    slurm.wait_for_nodes(3)

    job = slurm.submit()
    slurm.wait_for_checkpoint(job)
    first, _ = slurm.hosts_of(job)
    first.power_off()  # the head and the driver: the other node starts the job again
    until(lambda: "attempt 2 on" in slurm.output(job), 480)
    slurm.wait_for_checkpoint(job)
    first_now, other = slurm.hosts_of(job)
    other.power_off()
    slurm.wait_for_end(job, 900)
    assert slurm.state(job) == "COMPLETED", slurm.output(job)[-5000:]
    output = slurm.output(job)
    assert "Running stage 'synthesize@denoise'" not in output
    assert "continuing from the last checkpoint" in output

    made = slurm.built.checkout
    clone = slurm.built.fetch(first_now, "clone")
    assert sha256(clone / "models/denoise/model.safetensors") == sha256(made / "models/denoise/model.safetensors")
    first.power_on()
    assert slurm.built.restore_a_photo(first, "elsewhere")
