"""Exported graphs compute what the network does, at any size, also in a runtime without torch and this package."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from factories import changing_network

import dgunet
from dgunet.__main__ import main
from dgunet.checkpoint import read_card, save_model
from dgunet.export import ImageToImage, export
from dgunet.network import DGUNet, DGUNetConfig
from dgunet.network.fusion import _solve

SMALL = {"width": 4, "growth": 2, "head_growth": 2, "num_stages": 3}
CONFIGS = {
    "colour": DGUNetConfig(**SMALL, share_stages=False),
    "gray": DGUNetConfig(**SMALL, image_channels=1, share_stages=True),
    "sensing": DGUNetConfig(**SMALL, image_channels=1, sensing_ratio_percent=10),
}
WITHOUT_TORCH = """
import runpy, sys
for name in ("torch", "dgunet", "cv2", "PIL"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def network(name: str) -> DGUNet:
    return changing_network(CONFIGS[name])


@pytest.mark.parametrize("size", [(16, 16), (17, 23), (41, 64)])
def test_padding_in_the_graph_is_that_of_the_network(size):
    model = network("colour")
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ImageToImage(model)(images), model(images)[-1])


def test_the_elimination_is_the_solver(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    # In float64: in float32 the two differ by as much as the solvers of two kinds of CPU do.
    rows = torch.rand(2, 16, 40, generator=generator, dtype=torch.float64)
    rows[:, 3] = rows[:, 5]  # parallel rows, as damping allows them
    gram = rows @ rows.transpose(1, 2) + 1e-3 * torch.eye(16, dtype=torch.float64)
    right = torch.rand(2, 16, 4, generator=generator, dtype=torch.float64)
    wanted = _solve(gram, right)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    torch.testing.assert_close(_solve(gram, right), wanted)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["colour", "sensing"])
def test_an_onnx_graph_and_its_example(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_model(network(name), tmp_path / "model", {"task": name})
    assert main(["export", "model", "graph"]) == 0
    assert "graph: differs from the model by at most" in capsys.readouterr().out
    assert sorted(path.name for path in Path("graph").iterdir()) == [
        "README.md", "config.json", "example.py", "model.onnx",
    ]  # fmt: skip
    assert json.loads(Path("graph/config.json").read_text()) == read_card("model")
    channels = CONFIGS[name].image_channels
    photo = np.random.default_rng(1).integers(0, 65536, (45, 70, channels)).astype(np.uint16)
    np.save("photo.npy", photo)
    command = [sys.executable, "-c", WITHOUT_TORCH, "graph/example.py", "photo.npy", "restored.npy"]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": ""})
    wanted = dgunet.restore(network(name), photo).astype(int)
    assert np.abs(np.load("restored.npy") - wanted).max() <= 0.5 + 65535e-4
    assert np.abs(wanted - photo).max() > 1000, "the network changes something"


@pytest.mark.slow
def test_a_program_of_torch_export(tmp_path):
    report = export(network("gray"), tmp_path / "program", "pt2", source="a test", card={"task": "derain"})
    assert report.difference < 1e-4
    program = torch.export.load(tmp_path / "program" / "model.pt2").module()
    images = torch.rand(3, 1, 19, 50, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(program(images), network("gray")(images)[-1])


def test_what_differs_or_cannot_be_exported_is_not_written(tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    with pytest.raises(ValueError, match="there: exists; give the name of a new folder"):
        export(network("colour"), tmp_path / "there", "pt2", source="", card={})
    blocks = DGUNet.with_seed(
        DGUNetConfig(**SMALL, image_channels=1, sensing_ratio_percent=10, full_image=False), 0
    ).eval()
    with pytest.raises(ValueError, match="cannot be exported"):
        export(blocks, tmp_path / "blocks", "pt2", source="", card={})
    monkeypatch.setattr("dgunet.export.to_program", lambda _: None)
    monkeypatch.setattr("dgunet.export._write_pt2", lambda *_: lambda images: images + 1)
    with pytest.raises(ValueError, match="the graph differs from the network by"):
        export(network("colour"), tmp_path / "wrong", "pt2", source="", card={})
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"needs onnxscript: pip install 'dgunet\[export\]'"):
        export(network("colour"), tmp_path / "missing", "onnx", source="", card={})
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
