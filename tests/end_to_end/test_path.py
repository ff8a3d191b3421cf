"""A checkout whose path has characters that mean something in URLs, shells and patterns."""

import sys
from pathlib import Path

import pytest
from checkout import Checkout
from test_repro import shrink

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(1800)]


def test_a_checkout_in_a_path_of_special_characters_works_and_keeps_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "100% #1 what? ü&a=b [x]"
    folder.mkdir()
    checkout = Checkout(folder, shrink, {"XDG_CACHE_HOME": str(tmp_path / "cache")})
    checkout.run("dvc", "repro")
    assert checkout.read("reports/denoise/promote.json")["version"] == 1
    assert (folder / "mlflow.db").exists()
    assert list((folder / "mlartifacts").rglob("model.safetensors"))
    info = checkout.run(sys.executable, "-m", "dgunet", "info", "models:/denoise/1")
    assert "task: denoise" in info
    assert checkout.run("dvc", "repro").count("Running stage") == 1
    assert {path.name for path in tmp_path.iterdir()} == {folder.name, "cache"}
