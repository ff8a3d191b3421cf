"""The scripts of infra/ on hosts of this machine: nodes that go, networks that are cut, drivers that are killed."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from checkout import sha256
from hosts import NETWORK, OUTSIDE, why_not
from PIL import Image
from site_of_tests import Site, site

pytestmark = [
    pytest.mark.slow,
    pytest.mark.cluster,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(bool(why_not()), reason=str(why_not())),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("site")) as built:
        for host in built.hosts:
            built.start_node(host)
        built.wait_for_nodes(3)
        yield built


def test_the_pipeline_survives_what_happens_to_a_cluster(cluster: Site) -> None:
    n1, n2, n3 = cluster.hosts
    driver = cluster.submit("first")
    cluster.wait_for_checkpoint(driver)
    n2.cut()
    time.sleep(20)  # Ray takes a node for dead after some 50 s
    n2.join()
    cluster.wait_for_checkpoint(driver)
    n3.cut()
    cut_at = time.monotonic()
    cluster.wait_for_nodes(2)
    cluster.wait_for_checkpoint(driver)
    before = cluster.checkpoints()
    stopped = cluster.job("stop", "first", log="stop")
    assert driver.wait(180) == 0, driver.log.read_text()[-5000:]
    assert stopped.wait(60) == 0, stopped.log.read_text()
    assert "Job 'first' was stopped" in driver.log.read_text()
    assert "asked to stop: saving" in driver.log.read_text()
    assert cluster.checkpoints() - before
    (supervisor,) = n1.folder.glob("ray/session_2*/logs/jobs/supervisor-first.log")
    assert "terminated gracefully" in supervisor.read_text(), "no process was killed before it had ended"

    time.sleep(max(0.0, cut_at + 90 - time.monotonic()))
    n3.join()
    cluster.wait_for_nodes(3)  # node.sh has joined again
    driver = cluster.submit("second")
    cluster.wait_for_checkpoint(driver)
    n3.power_off()
    cluster.wait_for_checkpoint(driver)
    n1.power_off()  # the head, and the driver with it
    n1.power_on()
    n3.power_on()
    for host in (n1, n3):
        cluster.start_node(host)
    cluster.wait_for_nodes(3)
    cluster.clone("new head")
    driver = cluster.submit("third")
    assert driver.wait(600) == 0, driver.log.read_text()[-5000:]
    output = driver.log.read_text()
    assert "Running stage 'synthesize@denoise'" not in output
    assert "Running stage 'train@denoise'" in output


@pytest.mark.parametrize(
    ("host", "variables", "message"),
    [
        (0, {"RAY_AUTH_TOKEN": "of-another-cluster-0123456789abcdef"}, "the head refuses the token"),
        (0, {"RAY_ADDRESS": "n1:6380"}, "RAY_ADDRESS=n1:6380: cannot be reached"),
        (0, {"DGUNET_WORKERS": "40"}, "40 workers do not fit on the cluster"),
        (0, {"MLFLOW_TRACKING_URI": f"http://{OUTSIDE}:1"}, f"MLflow at http://{OUTSIDE}:1 does not answer"),
        (0, {"DGUNET_STORAGE": "/dev/shm/runs"}, f"the nodes {NETWORK}.2, {NETWORK}.3 do not see this folder"),
        (None, {"RAY_ADDRESS": f"{NETWORK}.1:6379"}, "this machine is no node of that cluster"),
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
    fetched = cluster.start(n3, sys.executable, "-m", "pipeline.results", "fetch", log="fetch")
    assert fetched.wait(120) == 0, fetched.log.read_text()
    for name in ("models/denoise/model.safetensors", "reports/denoise/gallery.html", "dvc.lock"):
        assert sha256(cluster.folder / "clone" / name) == sha256(made / name)

    stored = cluster.keys()
    commands = "python -m pipeline.collect --yes && python -m pipeline.approve --task denoise --version 1"
    done = cluster.start(n3, "sh", "-ec", commands, log="collect")
    assert done.wait(180) == 0, done.log.read_text()
    assert cluster.keys() == stored, "another clone has pushed it within a week"

    photo = cluster.folder / "photo.png"
    Image.new("RGB", (64, 48), (90, 120, 150)).save(photo)
    restore = ["restore", str(photo), str(cluster.folder / "restored"), "--model", "models:/denoise@champion"]
    keys = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}  # the server has them
    restored = cluster.start(n3, sys.executable, "-m", "dgunet", *restore, log="restore", **keys)
    assert restored.wait(120) == 0, restored.log.read_text()
    assert Image.open(cluster.folder / "restored" / "photo.png").size == (64, 48)
