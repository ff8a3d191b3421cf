"""A site for tests of infra/: hosts, a checkout that all of them see, PostgreSQL, SeaweedFS and MLflow."""

from __future__ import annotations

import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from checkout import Checkout
from factories import PROJECT
from hosts import OUTSIDE, Host, Started, hosts, why_not
from PIL import Image
from processes import until
from services import KEYS, PASSWORD, USER, Services, missing_services, services

TOKEN = "of-tests-0123456789abcdef0123456789abcdef"
RAYJOB = yaml.safe_load((PROJECT / "infra" / "kuberay" / "base" / "rayjob.yaml").read_text())["spec"]
MAKE = ("make", "--old-file=.venv/.ready")  # the environment of the tests is used, none is installed
PROGRAMS = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"

WAIT_FOR_NODES = """
import sys, time
from pipeline.cluster.ray_internals import cluster_state
nodes = -1
while nodes != int(sys.argv[1]):
    time.sleep(1)
    try:
        nodes = len(cluster_state("n1:6379", 5).nodes)
    except OSError as error:  # there is no head yet
        print(error, flush=True)
"""


def shrink(params: dict[str, Any], num_steps: int) -> None:
    params["tasks"] = ["denoise"]
    params["denoise"]["synthesize"] |= {"tile_size": 64, "stride": 256, "held_out_tile_size": 160}
    train = params["denoise"]["train"]
    train |= {
        "num_steps": num_steps,
        "warmup_steps": 2,
        "validate_every": num_steps // 2,
        "patch_size": 48,
        "batch_size": 4,
    }
    train.setdefault("network", {}).update(width=8, growth=4, num_stages=2)
    params["denoise"]["evaluate"] |= {"gallery_images": 1, "local_statistics": []}


def why_no_site() -> str:
    """Why there can be no site here; empty where there can."""
    return why_not() or missing_services()


class Site:
    """Hosts, a checkout that all of them see, a storage and an MLflow server."""

    def __init__(self, folder: Path, machines: list[Host], servers: Services, num_steps: int) -> None:
        self.folder, self.hosts, self.services = folder, machines, servers
        bucket = f"s3://{servers.bucket}"
        self.login = {
            "MLFLOW_TRACKING_URI": servers.mlflow,
            "MLFLOW_TRACKING_USERNAME": USER,
            "MLFLOW_TRACKING_PASSWORD": PASSWORD,
        }
        self.environment = {
            "PATH": PROGRAMS,
            "HOME": str(folder / "home"),
            "SHELL": "/bin/sh",
            "LANG": "C.UTF-8",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": TOKEN,
            "RAY_ADDRESS": "n1:6379",
            **self.login,
            **KEYS,
            "AWS_ENDPOINT_URL": servers.s3,
            "AWS_DEFAULT_REGION": "us-east-1",
            "DGUNET_STORAGE": f"{bucket}/runs",
            "DGUNET_SHARDS": f"{bucket}/shards",
            "DGUNET_REMOTE": f"{bucket}/dvc",
            "DGUNET_WORKERS": "1:2",
            "DGUNET_CPUS_PER_WORKER": "1",
            "DGUNET_CHECKPOINT_MINUTES": "0.05",
            "DGUNET_TIMEOUT_SECONDS": "120",
            "DGUNET_DRIVER_WAIT_SECONDS": "120",
        }
        (folder / "home").mkdir()
        self.origin = Checkout(folder / "checkout", lambda params: shrink(params, num_steps), {}).folder
        self.checkout = self.origin  # where commands run
        self.nodes: dict[str, Started] = {}

    def clone(self, name: str) -> None:
        """Run what follows in a new clone of the checkout, in which nothing has run."""
        self.checkout = self.folder / name
        subprocess.run(["git", "clone", "--quiet", str(self.origin), str(self.checkout)], check=True)

    def fetch(self, host: Host, name: str) -> Path:
        """Bring the results to a new clone, by a command on a host; return its folder."""
        self.clone(name)
        fetched = self.start(host, *MAKE, "fetch", log=f"fetch-{name}")
        assert fetched.wait(180) == 0, fetched.log.read_text()
        return self.checkout

    @cached_property
    def packages(self) -> Path:
        """The folder of what the wheel installs."""
        build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(self.folder)]
        subprocess.run(build, cwd=PROJECT, check=True, capture_output=True)
        with zipfile.ZipFile(next(self.folder.glob("*.whl"))) as wheel:
            wheel.extractall(self.folder / "packages")
        return self.folder / "packages"

    def restore_a_photo(self, host: Host, name: str) -> bytes:
        """Restore with the champion on a host that has the wheel and a login of MLflow alone; return the file.

        Args:
            host: where the command runs.
            name: of a new folder, so that no model is cached.
        """
        folder = self.folder / name
        folder.mkdir()
        Image.radial_gradient("L").convert("RGB").save(folder / "photo.png")
        environment = {"PATH": PROGRAMS, "HOME": str(folder), "PYTHONPATH": str(self.packages), **self.login}
        command = [sys.executable, "-m", "dgunet", "restore", "photo.png", "out", "--model=models:/denoise@champion"]
        restored = host.start(*command, environment=environment, folder=folder, log=folder / "log")
        assert restored.wait(180) == 0, restored.log.read_text()
        return (folder / "out" / "photo.png").read_bytes()

    def start_node(self, host: Host) -> None:
        """Run infra/node.sh on a host; n1 is the head."""
        role = ["worker", "n1:6379", "--num-cpus=1"]
        variables: dict[str, str] = {}
        if host.number == 1:
            role = ["head", "--dashboard-host=0.0.0.0"]  # as KubeRay starts it
            container = RAYJOB["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
            variables = {each["name"]: each["value"] for each in container["env"]}
        script = str(self.checkout / "infra" / "node.sh")
        role += [f"--node-ip-address={host.address}"]
        self.nodes[host.name] = self.start(host, script, *role, log=host.name, **variables)

    def submit(self, name: str) -> Started:
        """Start the entrypoint of the RayJob, as KubeRay does beside the head; the command prints what the job does."""
        entrypoint = RAYJOB["entrypoint"].replace("/opt/dgunet", str(self.checkout))
        return self.job("submit", "--submission-id", name, "--", entrypoint, log=name)

    def job(self, action: str, *arguments: str, log: str) -> Started:
        """Run a command of `ray job` on the head."""
        command = ["ray", "job", action, "--address", "http://127.0.0.1:8265", *arguments]
        return self.start(self.hosts[0], *command, log=log, PYTHONUNBUFFERED="1", RAY_ADDRESS="")

    def start(self, host: Host, *command: str, log: str, **variables: str) -> Started:
        """Run a command in the checkout on a host."""
        return host.start(*command, environment=self.environment | variables, folder=self.checkout, log=self.log(log))

    def log(self, name: str) -> Path:
        """The file of what a command has printed."""
        return self.folder / f"{name}.log"

    def wait_for_nodes(self, count: int) -> None:
        """Wait until the cluster has this number of nodes."""
        waiting = self.start(self.hosts[0], sys.executable, "-c", WAIT_FOR_NODES, str(count), log="nodes")
        assert waiting.wait(300) == 0, waiting.log.read_text()

    def checkpoints(self) -> set[str]:
        """The names of all complete checkpoints."""
        return {key.split("/")[2] for key in self.services.keys("runs/denoise") if key.endswith("checksums.json")}

    def wait_for_checkpoint(self, driver: Started) -> None:
        """Wait until the run of a driver has a new checkpoint."""
        self.wait_for_checkpoint_while(driver.running)
        assert driver.running(), driver.log.read_text()[-5000:]

    def wait_for_checkpoint_while(self, running: Callable[[], bool]) -> None:
        """Wait until there is a new checkpoint, or `running` is false."""
        before = self.checkpoints()

        def ended() -> bool:
            time.sleep(1)  # the servers and the training share the CPUs with this process
            return bool(self.checkpoints() - before) or not running()

        until(ended, 600)


@contextmanager
def site(folder: Path, num_steps: int) -> Iterator[Site]:
    """A site of three hosts, on which no Ray runs yet, with a training of some steps to run."""
    with hosts(3, folder) as machines, services(OUTSIDE) as servers:
        yield Site(folder, machines, servers, num_steps)
