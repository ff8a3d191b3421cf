"""Registered models hold safetensors, JSON and code, and restore anywhere; tags say why a version became champion."""

import base64
import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import mlflow
import numpy as np
import pytest
from factories import PROJECT
from packaging.requirements import Requirement

import dgunet
from dgunet.checkpoint import save_model
from dgunet.hub import registry as hub
from dgunet.images import Photo, read_photo, write_photo
from dgunet.network import DGUNet, DGUNetConfig
from pipeline.tracking import registry, runs

pytestmark = pytest.mark.filterwarnings(  # MLflow's own, on import
    "ignore::ResourceWarning", "ignore::DeprecationWarning:mlflow", "ignore:.*Any type hint is inferred:UserWarning"
)

RESTORE_ELSEWHERE = """
import sys, numpy as np, mlflow
model = mlflow.pyfunc.load_model("models:/derain@champion")
np.save(sys.argv[2], model.predict(list(np.load(sys.argv[1]))))
open("restored.png", "wb").write(model.predict([open(sys.argv[3], "rb").read()])[0])
import dgunet
print(dgunet.__file__)
"""


def model(folder: Path, seed: int = 0) -> Path:
    """A model folder with random weights."""
    network = DGUNet.with_seed(DGUNetConfig(width=8, growth=4, head_growth=4, num_stages=2), seed)
    save_model(network, folder, {"task": "derain", "provenance": {"commit": "c0ffee", "data": "da7a"}})
    return folder


def register(folder: Path, content: str) -> registry.Version:
    with runs.run("derain", "a run", {"model": content}, {}, system_metrics=False):
        return registry.register("derain", folder, content, {"commit": "c0ffee"})


@pytest.fixture
def version(store, tmp_path) -> registry.Version:
    return register(model(tmp_path / "model"), "0")


def test_a_registered_model_holds_safetensors_json_and_code_and_nothing_else(version, tmp_path):
    folder = Path(mlflow.artifacts.download_artifacts(version.uri, dst_path=str(tmp_path / "fetched")))
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    package = Path(dgunet.__file__).parent
    code = {path.relative_to(package).as_posix() for path in package.rglob("*") if path.is_file()}
    code = {name for name in code if "__pycache__" not in name}
    assert {name for name in files if name.startswith("code/")} == {f"code/dgunet/{name}" for name in code}
    assert {name for name in files if not name.startswith("code/")} >= {
        "artifacts/model/model.safetensors", "artifacts/model/config.json", "pyfunc_model.py", "MLmodel",
    }  # fmt: skip
    suffixes = {".safetensors", ".json", ".py", ".yaml", ".txt", ".typed", ".html", ""}
    assert {Path(name).suffix for name in files} <= suffixes
    assert not [path for path in folder.rglob("*") if path.name == "__pycache__"]


def test_a_version_has_its_provenance_and_its_run(version):
    found = mlflow.MlflowClient().get_model_version("derain", str(version.number))
    assert found.tags == {"content": "0", "code": registry.stored_code_digest(), "commit": "c0ffee"}
    assert found.run_id == runs.find_run("derain", {"model": "0"})
    assert version == registry.Version("derain", 1, found.tags)


def test_a_version_is_found_by_its_content(version):
    assert registry.registered("derain", "0") == version
    assert registry.registered("derain", "1") is None
    assert registry.registered("denoise", "0") is None


def copy_of_stored_code(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the registry take a copy of the project's code that a test may change."""
    (folder / "pipeline" / "tracking").mkdir(parents=True)
    shutil.copytree(PROJECT / "dgunet", folder / "dgunet", ignore=shutil.ignore_patterns("__pycache__"))
    for path in (registry.PYFUNC_MODEL, PROJECT / "pyproject.toml"):
        shutil.copy(path, folder / path.relative_to(PROJECT))
    monkeypatch.setattr("pipeline.runtime.fingerprint.PROJECT", folder)
    monkeypatch.setattr(registry, "PROJECT", folder)
    monkeypatch.setattr(registry, "PACKAGE", folder / "dgunet")
    monkeypatch.setattr(registry, "PYFUNC_MODEL", folder / registry.PYFUNC_MODEL.relative_to(PROJECT))


@pytest.mark.parametrize(
    ("path", "edit"),
    [
        ("dgunet/inference.py", ("import math", "import math  # changed")),
        ("pipeline/tracking/pyfunc_model.py", ("import mlflow", "import mlflow  # changed")),
        ("pyproject.toml", ('"safetensors>=0.5"', '"safetensors>=0.6"')),
    ],
)
def test_a_version_with_older_code_is_not_found(version, tmp_path, monkeypatch, path, edit):
    copy_of_stored_code(tmp_path / "checkout", monkeypatch)
    assert registry.registered("derain", "0") == version
    changed = tmp_path / "checkout" / path
    changed.write_text(changed.read_text().replace(*edit))
    assert registry.registered("derain", "0") is None


def test_the_requirements_are_those_of_the_package(version, tmp_path):
    folder = Path(mlflow.artifacts.download_artifacts(version.uri, dst_path=str(tmp_path / "fetched")))
    stored = {Requirement(line) for line in (folder / "requirements.txt").read_text().splitlines()}
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    assert {one.name for one in stored} >= {"torch", "numpy", "opencv-python", "pillow", "safetensors", "jaxtyping"}
    assert stored >= {Requirement(line) for line in project["dependencies"]}
    assert {one.name for one in stored} - {Requirement(line).name for line in project["dependencies"]} <= {"mlflow"}


def test_registering_prints_nothing(store, tmp_path, capfd, recwarn):
    register(model(tmp_path / "model"), "0")
    assert capfd.readouterr() == ("", "")
    assert [str(shown.message) for shown in recwarn if shown.category is UserWarning] == []  # Python prints these


def test_the_alias_moves_and_tags_say_when_why_and_which_version_was_champion_before(version, tmp_path):
    assert registry.champion("derain") is None
    registry.set_champion(version, "the first", None)
    first = registry.champion("derain")
    second = register(model(tmp_path / "second", seed=1), "1")
    registry.set_champion(second, "better by 1 dB", first)
    assert registry.champion("derain").number == second.number == 2
    tags = [mlflow.MlflowClient().get_model_version("derain", str(number)).tags for number in (1, 2)]
    assert [tag["champion_because"] for tag in tags] == ["the first", "better by 1 dB"]
    assert [tag["champion_after"] for tag in tags] == ["none", "1"]
    assert all(tag["champion_since"].endswith("+00:00") for tag in tags)


def test_without_its_version_the_alias_names_no_champion(version):
    registry.set_champion(version, "the first", None)
    mlflow.MlflowClient().delete_model_version("derain", "1")
    assert registry.champion("derain") is None


def test_a_registry_that_fails_is_not_taken_for_one_without_champion(store, monkeypatch):
    def fail(*_: object) -> None:
        raise mlflow.exceptions.MlflowException("the database is locked")

    monkeypatch.setattr(mlflow.MlflowClient, "get_model_version_by_alias", fail)
    with pytest.raises(mlflow.exceptions.MlflowException, match="locked"):
        registry.champion("derain")


def test_the_model_that_is_pulled_is_the_one_that_was_registered(version, tmp_path):
    registry.set_champion(version, "the first", None)
    image = np.random.default_rng(0).random((20, 31, 3), np.float32)
    folder = hub.pull("models:/derain@champion")
    for name in ("model.safetensors", "config.json"):
        assert (folder / name).read_bytes() == (tmp_path / "model" / name).read_bytes()
    pulled = dgunet.restore(dgunet.load_model("models:/derain@champion"), image)
    np.testing.assert_array_equal(pulled, dgunet.restore(dgunet.load_model(tmp_path / "model"), image))


@pytest.mark.slow
def test_a_registered_model_restores_without_this_project_and_without_pickle(version, store, tmp_path):
    registry.set_champion(version, "the first", None)
    images = np.random.default_rng(0).random((2, 20, 31, 3), np.float32)
    np.save(tmp_path / "in.npy", images)
    (tmp_path / "elsewhere").mkdir()
    alpha = np.full((20, 31, 1), 7, np.uint16)
    photo = Photo((65535 * images[0]).astype(np.uint16), alpha=alpha, resolution=(300.0, 300.0))
    write_photo(tmp_path / "a.png", photo)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "MLFLOW_TRACKING_URI": store}
    done = subprocess.run(
        [sys.executable, "-c", RESTORE_ELSEWHERE, *(str(tmp_path / name) for name in ("in.npy", "out.npy", "a.png"))],
        cwd=tmp_path / "elsewhere", env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not Path(done.stdout.splitlines()[-1]).is_relative_to(PROJECT), "the code comes with the model"
    expected = [dgunet.restore(dgunet.load_model(tmp_path / "model"), image) for image in images]
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, atol=1e-6)
    restored = read_photo(tmp_path / "elsewhere" / "restored.png")
    wanted = dgunet.restore(dgunet.load_model(tmp_path / "model"), photo.pixels)
    assert np.abs(restored.pixels.astype(int) - wanted).max() <= 1
    np.testing.assert_array_equal(restored.alpha, alpha)
    assert restored.resolution == pytest.approx((300, 300), abs=0.1)


def test_a_version_has_an_input_example_that_can_be_sent(version):
    info = mlflow.models.get_model_info(version.uri)
    assert info.signature.inputs.to_dict() == [{"type": "any", "required": True}]
    folder = Path(mlflow.artifacts.download_artifacts(version.uri))
    request = json.loads((folder / "serving_input_example.json").read_text())
    (image,) = request["inputs"]
    assert read_photo(base64.b64decode(image)).pixels.shape == (32, 32, 3)


def test_scores_of_each_image_are_stored_for_each_way_of_measuring(version):
    assert registry.scores(version, "as today") is None
    registry.store_scores(version, "as today", {"a": 25.0, "b": 26.5})
    registry.store_scores(version, "as yesterday", {"a": 1.0})
    assert registry.scores(version, "as today") == {"a": 25.0, "b": 26.5}
    registry.store_scores(version, "as today", {"a": 27.0})
    assert registry.scores(version, "as today") == {"a": 27.0}
    assert registry.scores(version, "as yesterday") == {"a": 1.0}


@pytest.mark.parametrize("run_id", [None, "0" * 32])
def test_a_version_without_a_run_has_no_scores(store, run_id):
    with runs.connected():
        client = mlflow.MlflowClient()
        client.create_registered_model("derain")
        made = client.create_model_version("derain", "file:///tmp/elsewhere", run_id=run_id)
        version = registry.Version("derain", int(made.version), {})
        registry.store_scores(version, "as today", {"a": 25.0})
        assert registry.scores(version, "as today") is None
