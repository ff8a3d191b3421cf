"""A graph of OpenVINO restores what the network restores, at any size; what it is not for is left to the network."""

import sys

import numpy as np
import pytest
import torch
from factories import changing_network

import dgunet
from dgunet import fast
from dgunet.__main__ import main
from dgunet.checkpoint import save_model
from dgunet.config import LocalStatistics
from dgunet.images import read_photo, write_image
from dgunet.network import DGUNet, DGUNetConfig

SMALL = {"width": 4, "growth": 2, "head_growth": 2, "num_stages": 3}
CONFIGS = {
    "colour": DGUNetConfig(**SMALL, share_stages=False),
    "sensing": DGUNetConfig(**SMALL, image_channels=1, sensing_ratio_percent=10),
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def network(name: str = "colour") -> DGUNet:
    return changing_network(CONFIGS[name])


def photo(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).random(shape, np.float32)


def doubled(image: torch.Tensor) -> torch.Tensor:
    return 2 * image


@pytest.mark.slow
@pytest.mark.parametrize("name", ["colour", "sensing"])
def test_a_graph_restores_what_the_network_restores(name, monkeypatch):
    pytest.importorskip("openvino", reason="dgunet[fast] is not installed")
    model = network(name)
    graph = fast.load_graph(model)
    for shape in ((33, 57, 3), (64, 41), (200, 16), (5, 40, 3)):
        restored = dgunet.restore(model, photo(*shape), fast=graph)
        np.testing.assert_allclose(restored, dgunet.restore(model, photo(*shape)), atol=1e-4)
        assert np.abs(restored - photo(*shape)).max() > 0.01, "the network changes something"
    options = {"tile": 192, "statistics": "tile", "self_ensemble": True}
    tiled = dgunet.restore(model, photo(250, 200, 3), fast=graph, **options)
    np.testing.assert_allclose(tiled, dgunet.restore(model, photo(250, 200, 3), **options), atol=1e-4)
    monkeypatch.setattr(fast, "write_graph", None)
    fast.load_graph(model)  # from the cache


@pytest.mark.slow
def test_a_graph_of_some_stages():
    pytest.importorskip("openvino", reason="dgunet[fast] is not installed")
    model = network()
    restored = dgunet.restore(model, photo(40, 48, 3), num_stages=1, fast=fast.load_graph(model, 1))
    np.testing.assert_allclose(restored, dgunet.restore(model, photo(40, 48, 3), num_stages=1), atol=1e-4)


@pytest.mark.slow
def test_a_graph_that_differs_is_refused(monkeypatch):
    pytest.importorskip("openvino", reason="dgunet[fast] is not installed")
    write_graph = fast.write_graph
    monkeypatch.setattr(fast, "_key", lambda *_: "same")
    monkeypatch.setattr(fast, "write_graph", lambda model, file, _: write_graph(model, file, 1))
    with pytest.raises(ValueError, match=r"agrees with the network to .* dB only, at least 60 are required"):
        fast.load_graph(network())


def test_the_graph_is_used_where_statistics_are_those_of_what_it_is_given():
    model = network()
    whole, large = photo(40, 40, 3), photo(250, 200, 3)
    np.testing.assert_array_equal(dgunet.restore(model, whole, fast=doubled), 2 * whole)
    tiled = dgunet.restore(model, large, tile=192, statistics="tile", fast=doubled)
    np.testing.assert_allclose(tiled, 2 * large, rtol=1e-6)
    exact = dgunet.restore(model, large, tile=192)
    np.testing.assert_array_equal(dgunet.restore(model, large, tile=192, fast=doubled), exact)
    model.local_statistics = LocalStatistics(96, ("norm",))
    np.testing.assert_array_equal(dgunet.restore(model, whole, fast=doubled), dgunet.restore(model, whole))
    np.testing.assert_array_equal(dgunet.restore(model, whole, statistics="whole", fast=doubled), 2 * whole)


def test_the_command_says_what_is_not_fast(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fast, "load_graph", lambda *_: torch.ones_like)
    model = network()
    save_model(model, tmp_path / "model", {})
    write_image(tmp_path / "a.png", photo(20, 30, 3))
    command = ["restore", "a.png", "out", "--model", "model", "--fast", "--overwrite", "--device", "cpu"]
    assert main(command) == 0
    assert "photos of more than one tile are restored without it" in capsys.readouterr().err
    assert (read_photo("out/a.png").pixels == 255).all()
    assert main([*command, "--statistics", "tile"]) == 0
    assert "--fast" not in capsys.readouterr().err
    model.local_statistics = LocalStatistics(96, ("norm",))
    save_model(model, tmp_path / "model", {})
    assert main(command) == 0
    assert "--statistics whole would be fast" in capsys.readouterr().err
    assert not (read_photo("out/a.png").pixels == 255).all()


def test_openvino_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ImportError, match=r"needs openvino: pip install 'dgunet\[fast\]'"):
        fast.load_graph(network())
