"""The scripts of infra/ on hosts of this machine: nodes that go, networks that are cut, drivers that are killed."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkout import sha256
from site_of_tests import MAKE, Site, site, why_no_site

pytestmark = [
    pytest.mark.slow,
    pytest.mark.cluster,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(bool(why_no_site()), reason=why_no_site()),
]

GIVEN_UP = "this node ended with status"  # node.sh, where Ray has given the node up


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("site"), 400) as built:
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
        (0, {"AWS_SECRET_ACCESS_KEY": "wrong"}, "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        (0, {"AWS_ENDPOINT_URL": "http://10.77.0.254:1"}, "DGUNET_STORAGE=s3://bucket/runs: cannot be reached"),
        (0, {"DGUNET_STORAGE": "s3://nobucket/runs"}, "there is no such bucket: create it, or set another"),
        (0, {"MLFLOW_TRACKING_PASSWORD": "wrong"}, "refuses the login: set MLFLOW_TRACKING_USERNAME"),
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


def test_results_come_to_another_clone_and_the_model_to_another_host(cluster: Site, tmp_path: Path) -> None:
    made, (n1, n2, n3) = cluster.checkout, cluster.hosts
    clone = cluster.fetch(n3, "clone")
    for name in ("models/denoise/model.safetensors", "reports/denoise/gallery.html", "dvc.lock"):
        assert sha256(clone / name) == sha256(made / name)

    # The clone sees nothing that refers to this object.
    push = "echo new > new && dvc add --quiet new && dvc push --quiet new.dvc"
    pushed = n1.start("sh", "-ec", push, environment=cluster.environment, folder=made, log=cluster.log("push"))
    assert pushed.wait(120) == 0, pushed.log.read_text()
    stored = cluster.services.keys()
    collected = cluster.start(n3, *MAKE, "gc", "YES=1", log="collect")
    assert collected.wait(120) == 0, collected.log.read_text()
    assert cluster.services.keys() == stored, "another clone has pushed it within a week"

    restored = cluster.restore_a_photo(n2, "before")
    cluster.services.back_up(tmp_path)
    cluster.services.lose_everything()
    cluster.services.restore(tmp_path)
    assert cluster.restore_a_photo(n2, "after") == restored
