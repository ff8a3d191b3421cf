"""The scripts of infra/ on hosts of this machine: nodes that go, networks that are cut, drivers that are killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from checkout import sha256
from hosts import why_not
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
    run = "infra/run.sh"
    driver = cluster.start(n1, run, log="driver")
    cluster.wait_for_checkpoint(driver)
    n2.cut()
    time.sleep(15)  # Ray takes a node for dead after some 50 s
    n2.join()
    cluster.wait_for_checkpoint(driver)
    n3.power_off()
    cluster.wait_for_checkpoint(driver)
    driver.send(signal.SIGTERM)
    assert driver.wait(120) != 0
    assert "asked to stop: saving" in cluster.log("driver").read_text()

    driver = cluster.start(n1, run, log="second")
    cluster.wait_for_checkpoint(driver)
    n1.power_off()  # the head, and the driver with it
    n1.power_on()
    n3.power_on()
    for host in (n1, n3):
        cluster.start_node(host)
    cluster.wait_for_nodes(3)
    cluster.clone("new head")
    driver = cluster.start(n1, run, log="third")
    assert driver.wait(600) == 0, cluster.log("third").read_text()[-5000:]
    output = cluster.log("third").read_text()
    assert "Running stage 'synthesize@denoise'" not in output
    assert "Running stage 'train@denoise'" in output


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


def test_results_come_to_another_clone(cluster: Site) -> None:
    made = cluster.checkout
    cluster.clone("clone")
    fetched = cluster.start(cluster.hosts[2], sys.executable, "-m", "pipeline.results", "fetch", log="fetch")
    assert fetched.wait(120) == 0, cluster.log("fetch").read_text()
    for name in ("models/denoise/model.safetensors", "reports/denoise/gallery.html", "dvc.lock"):
        assert sha256(cluster.folder / "clone" / name) == sha256(made / name)
