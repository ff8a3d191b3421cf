"""Models of a registry are fetched once and cached; a missing store is never created."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from factories import PROJECT

from dgunet.hub import registry as hub
from dgunet.hub.cache import Unreachable

CHAMPION = "models:/denoise@champion"

ENTRY = """
import mlflow
class Model(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input: list[str], params=None) -> list[str]:
        return model_input
mlflow.models.set_model(Model())
"""

REGISTER_AND_PULL = """
import json, os, mlflow
from dgunet.hub import registry as hub
store = "sqlite:///" + os.path.abspath("store.db")
mlflow.set_tracking_uri(store)
mlflow.set_experiment(experiment_id=mlflow.create_experiment("e", artifact_location="file://" + os.path.abspath("a")))
info = mlflow.pyfunc.log_model(
    name="model", python_model="entry.py", artifacts={"model": "denoise"}, pip_requirements=["torch"]
)
mlflow.register_model(info.model_uri, "denoise")
mlflow.MlflowClient().set_registered_model_alias("denoise", "champion", "1")
os.makedirs("here"), os.chdir("here")
os.environ["MLFLOW_TRACKING_URI"] = store
answers = []
for uri in ("models:/denoise@champion", "models:/denoise/1", "models:/denoise@best", "models:/derain@champion"):
    try:
        answers.append(str(hub.pull(uri)))
    except ValueError as error:
        answers.append(str(error))
mlflow.MlflowClient().set_model_version_tag("denoise", "1", "test.restored.psnr", "31.5")
listed = [[version.model, version.number, version.aliases, version.psnr] for version in hub.registered_versions()]
print(json.dumps([answers, os.listdir("."), listed]))
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    """An empty current directory and cache, and no configured registry."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path / "here"


@pytest.fixture
def registry(here, monkeypatch) -> SimpleNamespace:
    """A fake registry whose champion is `version`; its `mlflow.db` is never opened."""
    (here / "mlflow.db").touch()
    state = SimpleNamespace(version=3, source="models:/m-1", is_down=False, fetched=[])

    def find_version(*_: object) -> SimpleNamespace:
        if state.is_down:
            raise Unreachable("the registry is down")
        return SimpleNamespace(version=state.version, source=state.source)

    def fetch(_: str, uri: str, folder: Path) -> None:
        folder.mkdir(parents=True)
        state.fetched.append(uri)

    monkeypatch.setattr(hub, "_find_version", find_version)
    monkeypatch.setattr(hub, "_fetch", fetch)
    return state


def test_a_registered_model_is_fetched_and_a_missing_one_named(tmp_path):
    (tmp_path / "denoise").mkdir()
    (tmp_path / "denoise" / "config.json").write_text('{"model_type": "dgunet"}')
    (tmp_path / "denoise" / "model.safetensors").write_text("weights")
    (tmp_path / "entry.py").write_text(ENTRY)
    (tmp_path / "here").rmdir()
    run = subprocess.run(  # in a process of its own: warnings of MLflow are errors in tests
        [sys.executable, "-c", REGISTER_AND_PULL],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    (by_alias, by_number, missing_alias, missing_model), files, listed = json.loads(run.stdout.splitlines()[-1])
    assert by_alias == by_number
    assert sorted(path.name for path in Path(by_alias).iterdir()) == ["config.json", "model.safetensors"]
    assert (Path(by_alias) / "model.safetensors").read_text() == "weights"
    assert Path(by_alias).is_relative_to(tmp_path / "cache" / "dgunet")
    for message in (missing_alias, missing_model):
        assert message.endswith("it holds: denoise (newest version 1, @champion is 1)")
    assert files == []
    assert listed == [["denoise", 1, ["champion"], 31.5]]


def test_a_version_is_fetched_once(registry):
    assert hub.pull(CHAMPION) == hub.pull(CHAMPION)
    assert registry.fetched == ["models:/denoise/3"]


def test_a_changed_alias_gives_the_new_version(registry):
    before = hub.pull(CHAMPION)
    registry.version, registry.source = 4, "models:/m-2"
    assert hub.pull(CHAMPION) != before
    assert registry.fetched == ["models:/denoise/3", "models:/denoise/4"]


def test_the_same_number_in_a_new_registry_is_another_model(registry):
    before = hub.pull(CHAMPION)
    registry.source = "models:/m-2"
    assert hub.pull(CHAMPION) != before


def test_the_same_version_in_the_store_of_another_folder_is_another_model(registry, here, monkeypatch):
    first = hub.pull(CHAMPION)
    (here / "other").mkdir()
    (here / "other" / "mlflow.db").touch()
    monkeypatch.chdir(here / "other")
    assert hub.pull(CHAMPION) != first
    monkeypatch.setenv("MLFLOW_TRACKING_URI", hub.sqlite_address(here / "mlflow.db"))
    assert hub.pull(CHAMPION) == first, "the same store from another folder"
    assert len(registry.fetched) == 2


def test_without_the_registry_the_cached_model_is_used_with_a_message(registry, capsys):
    folder = hub.pull(CHAMPION)
    registry.is_down = True
    assert hub.pull(CHAMPION) == folder
    assert "the registry is down; using the cached model" in capsys.readouterr().err


def test_without_the_registry_and_without_a_cached_model_it_is_an_error(registry):
    registry.is_down = True
    with pytest.raises(ValueError, match="down, and the model is not in the cache"):
        hub.pull(CHAMPION)


def test_the_environment_is_restored(registry, monkeypatch):
    for name in hub._MLFLOW_DEFAULTS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "7")
    before = dict(os.environ)
    hub.pull(CHAMPION)
    assert dict(os.environ) == before


@pytest.mark.parametrize("uri", ["models:/denoise", "models:/a/b@c", "models:/denoise@", "models:/x/latest", "runs:/x"])
def test_other_addresses_are_refused_with_an_example(uri):
    with pytest.raises(ValueError, match="models:/denoise@champion"):
        hub.pull(uri)


def test_without_a_registry_the_error_says_what_to_set(here):
    with pytest.raises(ValueError, match="set MLFLOW_TRACKING_URI"):
        hub.pull(CHAMPION)
    assert list(here.iterdir()) == []


def test_a_missing_local_store_is_not_created(here, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///none.db")
    with pytest.raises(ValueError, match=r"none\.db does not exist"):
        hub.pull(CHAMPION)
    assert list(here.iterdir()) == []


def test_without_mlflow_the_error_says_what_to_install(here, monkeypatch):
    (here / "mlflow.db").touch()
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ImportError, match=r"pip install 'mlflow>="):
        hub.pull(CHAMPION)
