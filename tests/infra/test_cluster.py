"""The scripts of infra/ on hosts of this machine: nodes that go, networks that are cut, drivers that are killed."""

from __future__ import annotations

import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator

import pytest
from checkout import sha256
from factories import PROJECT
from hosts import why_not
from PIL import Image
from site_of_tests import Site, site

pytestmark = [
    pytest.mark.slow,
    pytest.mark.cluster,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(bool(why_not()), reason=str(why_not())),
]

MAKE = ("make", "--old-file=.venv/.ready")  # the environment of the tests is used, none is installed
GIVEN_UP = "this node ended with status"  # node.sh, where Ray has given the node up


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("site")) as built:
        for host in built.hosts:
            built.start_node(host)
        built.wait_for_nodes(3)
        yield built


def test_a_rayjob_survives_what_happens_to_a_cluster(cluster: Site) -> None:
    n1, n2, n3 = cluster.hosts
    job = cluster.submit("first")
    cluster.wait_for_checkpoint(job)
    n2.cut()
    time.sleep(20)  # how long the cut lasts
    n2.join()
    cluster.wait_for_checkpoint(job)
    assert GIVEN_UP not in cluster.log("n2").read_text(), "Ray waits for longer than that"
    n2.cut()
    cut_at = time.monotonic()
    cluster.wait_for_nodes(2)
    cluster.wait_for_checkpoint(job)
    before = cluster.checkpoints()
    stopped = cluster.job("stop", "first", log="stop")
    assert job.wait(180) == 0, job.log.read_text()[-5000:]
    assert stopped.wait(60) == 0, stopped.log.read_text()
    assert "Job 'first' was stopped" in job.log.read_text()
    assert "asked to stop: saving" in job.log.read_text()
    assert cluster.checkpoints() - before
    (supervisor,) = n1.folder.glob("ray/session_2*/logs/jobs/supervisor-first.log")
    assert "terminated gracefully" in supervisor.read_text(), "no process was killed before it had ended"
    time.sleep(max(0.0, cut_at + 90 - time.monotonic()))  # the cut lasts 90 s
    n2.join()
    cluster.wait_for_nodes(3)
    assert GIVEN_UP in cluster.log("n2").read_text(), "node.sh has started the node again"

    job = cluster.submit("second")
    cluster.wait_for_checkpoint(job)
    n3.power_off()
    cluster.wait_for_checkpoint(job)
    n1.power_off()  # the head, and the driver with it
    for host in (n1, n3):
        host.power_on()
        cluster.start_node(host)
    cluster.wait_for_nodes(3)
    cluster.clone("new-head")
    job = cluster.submit("third")
    assert job.wait(600) == 0, job.log.read_text()[-5000:]
    output = job.log.read_text()
    assert "Running stage 'synthesize@denoise'" not in output
    assert "Running stage 'train@denoise'" in output
    assert "denoise: version 1 is the champion" in output
    assert "Job 'third' succeeded" in output


@pytest.mark.parametrize(
    ("host", "variables", "message"),
    [
        (0, {"RAY_AUTH_TOKEN": "of-another-cluster-0123456789abcdef"}, "the head refuses the token"),
        (0, {"RAY_ADDRESS": "n1:6380"}, "RAY_ADDRESS=n1:6380: cannot be reached"),
        (0, {"DGUNET_WORKERS": "40"}, "40 workers do not fit on the cluster"),
        (0, {"MLFLOW_TRACKING_URI": "http://10.77.0.254:1"}, "MLflow at http://10.77.0.254:1 does not answer"),
        (0, {"DGUNET_STORAGE": "/dev/shm/runs"}, "the nodes 10.77.0.2, 10.77.0.3 do not see this folder"),
        (None, {"RAY_ADDRESS": "10.77.0.1:6379"}, "this machine is not a node of that cluster"),
    ],
)
def test_faults_are_found_before_the_first_work(
    cluster: Site, host: int | None, variables: dict[str, str], message: str
) -> None:
    command = [sys.executable, "-m", "pipeline.doctor"]
    if host is None:
        environment = cluster.environment | variables
        done = subprocess.run(
            command, cwd=cluster.checkout, env=environment, capture_output=True, text=True, check=False
        )
        status, output = done.returncode, done.stderr
    else:
        log = f"doctor-{message[:20].replace('/', '-')}"
        status = cluster.start(cluster.hosts[host], *command, log=log, **variables).wait(60)
        output = cluster.log(log).read_text()
    assert status == 1
    assert [line for line in output.splitlines() if line.startswith("failed") and message in line], output
    assert "Traceback" not in output


def test_results_come_to_another_clone_and_the_model_to_another_host(cluster: Site) -> None:
    made, n3 = cluster.checkout, cluster.hosts[2]
    cluster.clone("clone")
    fetched = cluster.start(n3, *MAKE, "fetch", log="fetch")
    assert fetched.wait(120) == 0, fetched.log.read_text()
    for name in ("models/denoise/model.safetensors", "reports/denoise/gallery.html", "dvc.lock"):
        assert sha256(cluster.folder / "clone" / name) == sha256(made / name)

    # The clone sees nothing that refers to this object.
    push = "echo new > new && dvc add --quiet new && dvc push --quiet new.dvc"
    pushed = cluster.hosts[0].start(
        "sh", "-ec", push, environment=cluster.environment, folder=made, log=cluster.log("push")
    )
    assert pushed.wait(120) == 0, pushed.log.read_text()
    stored = cluster.keys()
    collected = cluster.start(n3, *MAKE, "gc", "YES=1", log="collect")
    assert collected.wait(120) == 0, collected.log.read_text()
    assert cluster.keys() == stored, "another clone has pushed it within a week"

    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(cluster.folder)]
    subprocess.run(build, cwd=PROJECT, check=True, capture_output=True)
    folder = cluster.folder / "without-checkout"
    with zipfile.ZipFile(next(cluster.folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder / "packages")
    Image.new("RGB", (64, 48), (90, 120, 150)).save(folder / "photo.png")
    environment = {"PATH": cluster.environment["PATH"], "HOME": str(folder), "PYTHONPATH": str(folder / "packages")}
    command = [sys.executable, "-m", "dgunet", "restore", "photo.png", "restored", "--model=models:/denoise@champion"]
    restored = cluster.hosts[1].start(
        *command, environment=environment | {"MLFLOW_TRACKING_URI": cluster.mlflow}, folder=folder, log=folder / "log"
    )
    assert restored.wait(120) == 0, restored.log.read_text()
    with Image.open(folder / "restored" / "photo.png") as image:
        assert image.size == (64, 48)
