"""MLflow as infra/mlflow sets it up: logins, allowed hosts; backed up, dropped, restored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import mlflow
import pytest
from services import PASSWORD, USER, Services, missing_services, services

from dgunet.checkpoint import save_model
from dgunet.config import WEIGHTS_FILE, DGUNetConfig
from dgunet.hub.registry import pull
from dgunet.network import DGUNet
from pipeline.tracking import registry, runs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(missing_services()), reason=missing_services()),
]


@pytest.fixture(scope="module")
def servers() -> Iterator[Services]:
    with services() as built:
        yield built


@pytest.fixture
def logged_in(servers: Services, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, str]:
    login = {
        "MLFLOW_TRACKING_URI": servers.mlflow,
        "MLFLOW_TRACKING_USERNAME": USER,
        "MLFLOW_TRACKING_PASSWORD": PASSWORD,
    }
    for name, value in login.items():
        monkeypatch.setenv(name, value)
    return login


def test_only_a_login_and_an_allowed_host_are_answered(servers: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    path = "/api/2.0/mlflow/experiments/get?experiment_id=0"
    assert servers.status(path) == 401
    assert servers.status(path, login="password1234") == 401, "MLflow's own default"
    assert servers.status(path, login=PASSWORD) == 200
    assert servers.status(path, login=PASSWORD, host="other.example.org") == 403
    monkeypatch.setenv("MLFLOW_TRACKING_URI", servers.mlflow)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", USER)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
    with pytest.raises(ValueError, match="refuses the login: set MLFLOW_TRACKING_USERNAME"), runs.connected():
        pass


def pulled_weights(cache: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """The weights of the champion, fetched from the registry into a new cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    return (pull("models:/derain@champion") / WEIGHTS_FILE).read_bytes()


@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred:UserWarning")  # of MLflow, as a model is registered
def test_what_was_backed_up_comes_back(
    servers: Services, logged_in: Mapping[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "report.html").write_text("a report")
    network = DGUNet.with_seed(DGUNetConfig(width=8, growth=4, head_growth=4, num_stages=2), 0)
    save_model(network, tmp_path / "model", {"task": "derain"})
    with runs.run("derain", "a run", {"model": "0"}, {}, system_metrics=False) as current:
        run = current.id
        current.log({"psnr": 31.5}, 0)
        current.log_files(tmp_path / "report", "report")
        registry.set_champion(registry.register("derain", tmp_path / "model", "0", {}), "the first", None)
    weights = (tmp_path / "model" / WEIGHTS_FILE).read_bytes()
    assert pulled_weights(tmp_path / "before", monkeypatch) == weights
    servers.back_up(tmp_path / "backup")

    with runs.connected():
        mlflow.MlflowClient().delete_registered_model("derain")
    servers.lose_everything()
    with pytest.raises(ValueError, match="derain"):
        pulled_weights(tmp_path / "dropped", monkeypatch)

    servers.restore(tmp_path / "backup")
    (tmp_path / "fetched").mkdir()
    with runs.connected():
        client = mlflow.MlflowClient()
        version = client.get_model_version_by_alias("derain", "champion")
        assert version.run_id == run
        assert client.get_run(run).data.metrics == {"psnr": 31.5}
        found = client.download_artifacts(run, "report/report.html", str(tmp_path / "fetched"))
        assert Path(found).read_text() == "a report"
    assert pulled_weights(tmp_path / "after", monkeypatch) == weights
