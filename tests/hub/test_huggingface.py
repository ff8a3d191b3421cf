"""Models in repositories of a Hub: pushed by the real client, fetched, cached, and refused where they hold pickles."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from factories import PROJECT
from hub.servers import HubHandler, Server, running

from dgunet.checkpoint import load_model, save_model
from dgunet.network import DGUNet, DGUNetConfig


@pytest.fixture
def hub(tmp_path):
    """A Hub without repositories, and the model folder `model`."""
    network = DGUNet.with_seed(DGUNetConfig(width=4, growth=2, head_growth=2, num_stages=2), 0)
    save_model(network, tmp_path / "model", {"task": "derain", "provenance": {"commit": "abc"}})
    (tmp_path / "repositories").mkdir()
    with running(tmp_path / "repositories", HubHandler) as server:
        yield server


def dgunet(server: Server, tmp_path: Path, *arguments: str) -> tuple[int, str, str]:
    """Run the command line in a process of its own, as the Hub's client reads its settings when it is imported."""
    environment = {
        **os.environ, "HF_ENDPOINT": server.address, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": "hf_token",
        "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = [sys.executable, "-m", "dgunet", *arguments]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    return run.returncode, run.stdout, run.stderr


def test_a_model_is_pushed_and_fetched(hub, tmp_path):
    status, output, errors = dgunet(hub, tmp_path, "push", "model", "hf://lab/derain")
    assert (status, errors) == (0, "")
    assert output.startswith(f"model is at {hub.address}/lab/derain/commit/")
    repository = hub.folder / "lab" / "derain"
    assert sorted(file.name for file in repository.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert (repository / "config.json").read_bytes() == (tmp_path / "model" / "config.json").read_bytes()
    card = (repository / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: dgunet\n")
    assert "dgunet restore PHOTOS OUT --model hf://lab/derain" in card
    assert "| commit | abc |" in card

    status, output, errors = dgunet(hub, tmp_path, "info", "hf://lab/derain")
    assert (status, errors) == (0, "")
    assert "task: derain" in output
    hub.fault = "down"
    status, again, errors = dgunet(hub, tmp_path, "info", "hf://lab/derain")
    assert (status, again) == (0, output)
    assert errors == "hf://lab/derain: the Hub does not answer; using the cached model\n"


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("hf://lab/none", "no such repository, or it is private: log in with `hf auth login` or set HF_TOKEN"),
        ("hf://lab/derain@v2", "the repository has no such revision"),
        ("hf://derain", "write hf://OWNER/NAME or hf://OWNER/NAME@REVISION"),
        (
            "hf://lab/pickled",
            "not a DGUNet, it lacks model.safetensors; pytorch_model.bin is a pickle, which can run code, and is not "
            "loaded",
        ),
    ],
)
def test_what_cannot_be_loaded_is_refused_in_a_line(hub, tmp_path, address, message):
    for name, file in (("derain", "model.safetensors"), ("pickled", "pytorch_model.bin")):
        (hub.folder / "lab" / name).mkdir(parents=True)
        (hub.folder / "lab" / name / "config.json").write_text("{}")
        (hub.folder / "lab" / name / file).touch()
    assert dgunet(hub, tmp_path, "info", address) == (1, "", f"dgunet: {address}: {message}\n")


def test_without_an_answer_and_without_a_cached_model_it_is_an_error(hub, tmp_path):
    hub.fault = "down"
    message = "the Hub does not answer, and the model is not in its cache"
    assert dgunet(hub, tmp_path, "info", "hf://lab/derain") == (1, "", f"dgunet: hf://lab/derain: {message}\n")


def test_a_model_is_pushed_into_a_folder(hub, tmp_path):
    status, output, _ = dgunet(hub, tmp_path, "push", "model", "our models/derain")
    assert (status, output) == (0, "model is in our models/derain\n")
    assert load_model(tmp_path / "our models" / "derain").config.width == 4
    assert [path.name for path in (tmp_path / "our models").iterdir()] == ["derain"]
    status, _, errors = dgunet(hub, tmp_path, "push", "model", "our models/derain")
    assert (status, errors) == (1, "dgunet: our models/derain: exists; give the name of a new folder\n")


def test_a_card_that_lies_beside_the_model_is_kept(hub, tmp_path):
    (tmp_path / "model" / "README.md").write_text("# Derain of the lab\n")
    assert dgunet(hub, tmp_path, "push", "model", "out")[0] == 0
    text = (tmp_path / "out" / "README.md").read_text()
    assert text.startswith("---\n")
    assert text.endswith("---\n# Derain of the lab\n")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["task"] == "derain"


def test_a_full_disk_is_an_error_in_a_line_and_leaves_nothing(hub, tmp_path, small_disk):
    small_disk(tmp_path / "full", "8k")
    status, _, errors = dgunet(hub, tmp_path, "push", "model", "full/derain")
    message = "dgunet: full/derain: the model could not be written (No space left on device)\n"
    assert (status, errors) == (1, message)
    assert list((tmp_path / "full").iterdir()) == []
