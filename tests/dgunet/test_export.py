"""Exported graphs compute what the network does, at any size, also in a runtime without torch and this package."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch
from factories import changing_network

import dgunet
from dgunet.__main__ import main
from dgunet.checkpoint import read_card, save_model
from dgunet.commands.export import _calibration
from dgunet.export import ImageToImage, _restored, export, run_graph, to_program, write_onnx
from dgunet.images.files import read_image, write_image
from dgunet.network import DGUNet, DGUNetConfig
from dgunet.network.fusion import _solve
from dgunet.quantization import needed_agreement, quality_of

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


@pytest.fixture
def in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four smooth pictures with noise."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(4):
        rng = np.random.default_rng(number)
        smooth = cv2.resize(rng.random((6, 8, 3), np.float32), (80, 60), interpolation=cv2.INTER_CUBIC)
        write_image(folder / f"{number}.png", np.clip(smooth + rng.normal(0, 0.1, smooth.shape), 0, 1).astype("f4"))
    return folder


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    """A folder with one model, of 31 dB on its val split, and its graphs of lower precision."""
    folder = tmp_path_factory.mktemp("graphs")
    save_model(network("colour"), folder / "model", {"task": "denoise", "provenance": {"metrics": {"val_psnr": 31.0}}})
    program = to_program(network("colour"))  # once for both: tracing and translating take most of the time
    write_onnx(program, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dgunet.export.to_program", lambda _: program)
        patch.setattr("dgunet.export.write_onnx", lambda _, made: shutil.copy(folder / "model.onnx", made))
        for precision in ("float16", "int8"):
            calibrate = ["--calibrate", str(photos)] if precision == "int8" else []
            command = ["export", str(folder / "model"), str(folder / precision), "--precision", precision, *calibrate]
            assert main(command) == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "least"), [("float16", 60), ("int8", 47.4)])
def test_a_graph_of_lower_precision(precision, least, graphs, photos, in_tmp_path):
    weights = [
        weight for weight in onnx.load(graphs / precision / "model.onnx").graph.initializer if len(weight.dims) == 4
    ]
    types = Counter(onnx.TensorProto.DataType.Name(weight.data_type) for weight in weights)
    assert types.most_common(1)[0][0] == precision.upper()
    photo = read_image(photos / "1.png")
    np.save("photo.npy", photo)
    command = [sys.executable, "-c", WITHOUT_TORCH, str(graphs / precision / "example.py"), "photo.npy", "restored.npy"]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": ""})
    error = np.load("restored.npy") - dgunet.restore(network("colour"), photo)
    agreement = -10 * np.log10(np.square(error.astype(float)).mean())
    assert least < agreement < 100
    # Sums over the pixels of a larger image exceed float16.
    large = np.random.default_rng(2).uniform(0.5, 1, (1, 3, 500, 600)).astype(np.float32)
    error = run_graph(graphs / precision / "model.onnx", optimized=False)(large) - _restored(network("colour"), large)
    assert -10 * np.log10(np.square(error.astype(float)).mean()) > least
    page = (graphs / precision / "README.md").read_text()
    assert f"| precision | {precision} |" in page and "| agreement with the network |" in page


@pytest.mark.parametrize("quality", [20.0, 31.0, 40.0])
def test_the_agreement_that_is_needed_costs_a_tenth_of_a_decibel(quality):
    power = 10 ** (-quality / 10) + 10 ** (-needed_agreement(quality) / 10)
    assert quality + 10 * np.log10(power) == pytest.approx(0.1)


def test_the_quality_of_a_model_is_that_of_its_card():
    assert quality_of({"provenance": {"metrics": {"val_psnr": 27.5}}}) == 27.5
    assert quality_of({}) == quality_of({"provenance": {}}) == 40.0


def test_a_precision_that_costs_more_is_refused_and_leaves_nothing(tmp_path, monkeypatch):
    card = {"provenance": {"metrics": {"val_psnr": 31.0}}}
    monkeypatch.setattr("dgunet.export.to_program", lambda _: None)
    monkeypatch.setattr("dgunet.export.write_onnx", lambda *_: None)
    monkeypatch.setattr("dgunet.export.to_int8", lambda *_: None)
    monkeypatch.setattr("dgunet.export.to_float16", lambda *_: None)
    monkeypatch.setattr("dgunet.export.run_graph", lambda *_, **__: lambda images: _restored(model, images) + 0.005)
    model = network("colour")
    images = [np.random.default_rng(number).random((1, 3, 32, 40), np.float32) for number in range(2)]
    with pytest.raises(
        ValueError, match=r"int8 agrees with the network to 46\.0 dB; 47\.3 dB are .* 31\.0 dB\. Export"
    ):
        export(model, tmp_path / "graph", "onnx", source="", card=card, precision="int8", calibration=images)
    with pytest.raises(
        ValueError, match=r"float16 agrees with .* 46\.0 dB; 56\.3 dB are needed .* 0\.1 dB of 40\.0 dB"
    ):
        export(model, tmp_path / "graph", "onnx", source="", card={}, precision="float16")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--precision", "int8"], "int8 needs two photos or more .* name them by --calibrate"),
        (["--precision", "int8", "--calibrate", "1.png"], "int8 needs two photos or more"),
        (["--precision", "int8", "--calibrate", "empty"], "empty: no photos there; photos end in .png"),
        (["--precision", "int8", "--calibrate", "none.png"], "none.png: No such file"),
        (["--precision", "int8", "--calibrate", "tiny.png"], "tiny.png: .* needs 16 pixels or more on each side"),
        (["--precision", "float16", "--format", "pt2"], "float16 is for the format onnx"),
    ],
)
def test_wrong_arguments_of_precision(arguments, message, photos, in_tmp_path, capsys):
    save_model(network("colour"), in_tmp_path / "model", {"task": "denoise"})
    Path("empty").mkdir()
    shutil.copy(photos / "1.png", "1.png")
    write_image("tiny.png", np.zeros((15, 40, 3), np.float32))
    assert main(["export", "model", "graph", *arguments]) != 0
    assert re.search(message, capsys.readouterr().err)
    assert not Path("graph").exists()


def test_of_many_photos_some_calibrate_from_first_to_last(photos, monkeypatch):
    monkeypatch.setattr("dgunet.commands.export.MAX_CALIBRATION", 2)
    model = network("colour")
    first, third = _calibration(model, [photos])
    for image, name in ((first, "0.png"), (third, "2.png")):
        np.testing.assert_array_equal(image[0].transpose(1, 2, 0), read_image(photos / name))
    assert _calibration(model, []) == []


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
