"""A site for tests of infra/: hosts, a checkout that all of them see, a storage and an MLflow server."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import yaml
from checkout import Checkout
from factories import PROJECT
from hosts import OUTSIDE, Host, Started, hosts
from processes import WITHOUT_JOBS, S3Server, until

TOKEN = "of-tests-0123456789abcdef0123456789abcdef"
RAYJOB = yaml.safe_load((PROJECT / "infra" / "kuberay" / "base" / "rayjob.yaml").read_text())["spec"]
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


def shrink(params: dict[str, Any]) -> None:
    params["tasks"] = ["denoise"]
    params["denoise"]["synthesize"] |= {"tile_size": 64, "stride": 256, "held_out_tile_size": 160}
    train = params["denoise"]["train"]
    train |= {"num_steps": 400, "warmup_steps": 2, "validate_every": 200, "patch_size": 48, "batch_size": 4}
    train.setdefault("network", {}).update(width=8, growth=4, num_stages=2)
    params["denoise"]["evaluate"] |= {"gallery_images": 1, "local_statistics": []}


class Site:
    """Hosts, a checkout that all of them see, a storage and an MLflow server."""

    def __init__(self, folder: Path, machines: list[Host], s3: S3Server) -> None:
        self.folder, self.hosts, self.s3, self.client = folder, machines, s3, s3.client()
        with socket.socket() as probe:
            probe.bind((OUTSIDE, 0))
            port = probe.getsockname()[1]
        self.mlflow = f"http://{OUTSIDE}:{port}"
        self.environment = {
            "PATH": PROGRAMS,
            "HOME": str(folder / "home"),
            "SHELL": "/bin/sh",
            "LANG": "C.UTF-8",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": TOKEN,
            "RAY_ADDRESS": "n1:6379",
            "RAY_worker_niceness": "0",  # Ray's own is 15: workers would wait for all that runs beside the tests
            "MLFLOW_TRACKING_URI": self.mlflow,
            "AWS_ENDPOINT_URL": f"http://{OUTSIDE}:{s3.port}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "DGUNET_STORAGE": f"s3://{s3.bucket}/runs",
            "DGUNET_SHARDS": f"s3://{s3.bucket}/shards",
            "DGUNET_REMOTE": f"s3://{s3.bucket}/dvc",
            "DGUNET_WORKERS": "1:2",
            "DGUNET_CPUS_PER_WORKER": "1",
            "DGUNET_CHECKPOINT_MINUTES": "0.05",
            "DGUNET_TIMEOUT_SECONDS": "120",
            "DGUNET_DRIVER_WAIT_SECONDS": "120",
        }
        (folder / "home").mkdir()
        self.origin = Checkout(folder / "checkout", shrink, {}).folder
        self.checkout = self.origin  # where commands run
        self.nodes: dict[str, Started] = {}
        server = [sys.executable, "-m", "mlflow", "server", "--host", OUTSIDE, "--port", str(port), "--workers", "1"]
        server += [
            "--backend-store-uri",
            f"sqlite:///{folder}/mlflow.db",
            "--artifacts-destination",
            str(folder / "files"),
        ]
        server += ["--allowed-hosts", f"{OUTSIDE}:*"]
        with (folder / "mlflow.log").open("w") as log:
            variables = os.environ | WITHOUT_JOBS
            self.server = subprocess.Popen(server, stdout=log, stderr=log, start_new_session=True, env=variables)

    def clone(self, name: str) -> None:
        """Run what follows in a new clone of the checkout, in which nothing has run."""
        self.checkout = self.folder / name
        subprocess.run(["git", "clone", "--quiet", str(self.origin), str(self.checkout)], check=True)

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

    def mlflow_answers(self) -> bool:
        """Whether the MLflow server has started."""
        assert self.server.poll() is None, self.log("mlflow").read_text()
        with suppress(OSError), urlopen(f"{self.mlflow}/health", timeout=5):
            return True
        return False

    def wait_for_nodes(self, count: int) -> None:
        """Wait until the cluster has this number of nodes."""
        waiting = self.start(self.hosts[0], sys.executable, "-c", WAIT_FOR_NODES, str(count), log="nodes")
        assert waiting.wait(300) == 0, waiting.log.read_text()

    def keys(self, prefix: str = "") -> set[str]:
        """The keys of all objects in the storage that begin with a prefix."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.s3.bucket, Prefix=prefix)
        return {entry["Key"] for page in pages for entry in page.get("Contents", [])}

    def checkpoints(self) -> set[str]:
        """The names of all complete checkpoints."""
        return {key.split("/")[2] for key in self.keys("runs/denoise") if key.endswith("checksums.json")}

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
def site(folder: Path) -> Iterator[Site]:
    """A site of three hosts, on which no Ray runs yet."""
    with hosts(3, folder) as machines, pytest.MonkeyPatch.context() as patch:
        s3 = S3Server(folder / "s3.log", OUTSIDE)
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", f"http://{OUTSIDE}:{s3.port}")
        built = Site(folder, machines, s3)
        try:
            until(built.mlflow_answers, 120)
            yield built
        finally:
            os.killpg(built.server.pid, signal.SIGKILL)
            built.server.wait()
            s3.stop()
