"""Two clones that use one storage, one DVC remote and one MLflow server at the same time."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import mlflow
import pytest
from checkout import Checkout, sha256
from services import PASSWORD, USER, Services, missing_services, services
from site_of_tests import shrink

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(missing_services()), reason=missing_services()),
]
ALL = "python -m pipeline.results prepare && dvc repro && python -m pipeline.results store"


@pytest.fixture
def servers() -> Iterator[Services]:
    with services() as built:
        yield built


def clone(folder: Path, learning_rate: float, servers: Services) -> Checkout:
    def edit(params: dict[str, Any]) -> None:
        shrink(params, 120)
        params["denoise"]["train"]["learning_rate"] = learning_rate
        params["denoise"]["evaluate"]["baseline"]["strength_per_sigma"] = 0.01  # a champion must be better

    return Checkout(
        folder,
        edit,
        {
            "DGUNET_STORAGE": f"s3://{servers.bucket}/runs",
            "DGUNET_SHARDS": f"s3://{servers.bucket}/shards",
            "DGUNET_REMOTE": f"s3://{servers.bucket}/dvc",
            "DGUNET_CPUS_PER_WORKER": "1",
            "MLFLOW_TRACKING_URI": servers.mlflow,
            "MLFLOW_TRACKING_USERNAME": USER,
            "MLFLOW_TRACKING_PASSWORD": PASSWORD,
            "AWS_ENDPOINT_URL": servers.s3,
            "AWS_DEFAULT_REGION": "us-east-1",
        },
    )


def test_two_clones_at_once_and_gc_in_one_of_them(
    servers: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clones = [clone(tmp_path / str(rate), rate, servers) for rate in (0.001, 0.002)]
    with ExitStack() as stack:
        drivers = [stack.enter_context(each.started("sh", "-c", ALL)) for each in clones]
        assert [driver.wait(600) for driver in drivers] == [0, 0]
    models = [sha256(each.folder / "models/denoise/model.safetensors") for each in clones]
    assert models[0] != models[1]

    first, second = clones
    stored = servers.keys()
    first.run("python", "-m", "pipeline.collect", "--yes")
    assert servers.keys() == stored, "the other clone has pushed it within a week"
    for name in (".dvc/cache", "models", "reports", "data"):
        shutil.rmtree(second.folder / name)
    second.run("dvc", "pull", "--quiet")
    assert sha256(second.folder / "models/denoise/model.safetensors") == models[1]
    output = second.run("dvc", "repro")
    for stage in ("synthesize", "train", "evaluate", "promote"):
        assert f"Stage '{stage}@denoise' didn't change, skipping" in output

    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, first.environment[name])
    # MLflow remembers the server of an earlier test in this process, so the address is said.
    client = mlflow.MlflowClient(servers.mlflow, servers.mlflow)
    assert {version.version for version in client.search_model_versions("name='denoise'")} == {"1", "2"}
    assert client.get_model_version_by_alias("denoise", "champion").version in ("1", "2")
