"""Models at an address: fetched as a whole, verified by checksum, cached, and used without a connection."""

import hashlib
import importlib.util
import shutil
from pathlib import Path

import pytest
from hub.servers import FolderHandler, Server, running

from dgunet.checkpoint import load_model, save_model
from dgunet.hub import addresses, model_folder
from dgunet.network import DGUNet, DGUNetConfig

CONFIG = DGUNetConfig(width=4, growth=2, head_growth=2, num_stages=2)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server of the folder `models`, with the model `derain`; the cache is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    save_model(DGUNet.with_seed(CONFIG, 0), tmp_path / "models" / "derain", {"task": "derain"})
    with running(tmp_path / "models", FolderHandler) as server:
        yield server


def sha256(server: Server) -> str:
    return hashlib.sha256((server.folder / "derain" / "model.safetensors").read_bytes()).hexdigest()


def cached(tmp_path: Path) -> list[str]:
    """What the cache holds beside its answers, hidden files too."""
    return sorted(path.name for path in (tmp_path / "cache" / "dgunet").glob("*") if path.name != "answers")


@pytest.mark.parametrize("path", ["derain", "derain/", "moved/derain"])
def test_a_model_is_fetched_once(server, path):
    first = model_folder(f"{server.address}/{path}")
    assert model_folder(f"{server.address}/{path}") == first
    assert sorted(file.name for file in first.iterdir()) == ["config.json", "model.safetensors"]
    weights = [count for name, count in server.requests.items() if name == "/derain/model.safetensors"]
    assert weights == [1]
    assert load_model(f"{server.address}/{path}").config == CONFIG


def test_a_model_that_changed_is_fetched_again(server, tmp_path):
    first = model_folder(f"{server.address}/derain")
    save_model(DGUNet.with_seed(CONFIG, 1), tmp_path / "models" / "derain", {"task": "derain"})
    second = model_folder(f"{server.address}/derain")
    assert second != first
    assert (second / "model.safetensors").read_bytes() == (server.folder / "derain/model.safetensors").read_bytes()


@pytest.mark.parametrize("fault", ["gone", "503"])
def test_without_a_connection_the_cached_model_is_used_with_a_line(server, capsys, fault):
    folder = model_folder(f"{server.address}/derain")
    if fault == "gone":
        server.stop()
        server.shutdown = lambda: None  # the fixture stops it once more
    else:
        server.fault = fault
    assert model_folder(f"{server.address}/derain") == folder
    message = capsys.readouterr().err
    assert message.endswith("; using the cached model\n")
    assert message.count("\n") == 1
    with pytest.raises(ValueError, match="and the model is not in the cache"):
        model_folder(f"{server.address}/denoise")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("cut", r"model\.safetensors: the connection ended after \d+ of \d+ bytes; try again"),
        ("changed", r"the sha256 of the received file is .* instead of .*: damaged or changed"),
    ],
)
def test_what_came_incomplete_or_changed_is_not_kept(server, tmp_path, fault, message):
    server.fault = fault
    with pytest.raises(ValueError, match=message):
        model_folder(f"{server.address}/derain")
    assert cached(tmp_path) == []
    server.fault = None
    load_model(f"{server.address}/derain")


def test_a_fetch_that_is_interrupted_leaves_nothing(server, tmp_path, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(addresses.hashlib, "sha256", lambda *_: type("Hash", (), {"update": interrupted})())
        patch.setattr("dgunet.hub.cache.digest", lambda *_: "x")
        with pytest.raises(KeyboardInterrupt):
            model_folder(f"{server.address}/derain")
    assert cached(tmp_path) == []


def test_a_pinned_checksum_is_held(server):
    model_folder(f"{server.address}/derain#sha256={sha256(server)}")
    with pytest.raises(ValueError, match=r"config\.json there says sha256"):
        model_folder(f"{server.address}/derain#sha256={'0' * 64}")


def test_a_pinned_checksum_holds_for_a_model_without_one(server, tmp_path):
    config = server.folder / "derain" / "config.json"
    config.write_text(config.read_text().replace("weights_sha256", "former"))
    model_folder(f"{server.address}/derain#sha256={sha256(server)}")
    with pytest.raises(ValueError, match="the sha256 of the received file is"):
        model_folder(f"{server.address}/derain#sha256={'0' * 64}")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/none", r"none/config\.json: the server answers 404"),
        ("/page", r"page/config\.json: not valid JSON; is this the folder of a model"),
        ("/half", r"half/model\.safetensors: the server answers 404"),
        ("/derain?x=1", r"the address of a folder is needed, without \?x=1"),
        ("/derain#main", "what follows # must be sha256="),
    ],
)
def test_what_is_no_model_is_refused_with_the_reason(server, tmp_path, path, message):
    (server.folder / "page").mkdir()
    (server.folder / "page" / "config.json").write_text("<html>")
    (server.folder / "half").mkdir()
    shutil.copy(server.folder / "derain" / "config.json", server.folder / "half")
    with pytest.raises(ValueError, match=message):
        model_folder(server.address + path)
    assert cached(tmp_path) == []


def test_a_bucket(s3_server, tmp_path, monkeypatch, capsys):
    import boto3

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    save_model(DGUNet.with_seed(CONFIG, 0), tmp_path / "derain", {})
    client = boto3.client("s3")
    client.create_bucket(Bucket="lab")
    for file in (tmp_path / "derain").iterdir():
        client.upload_file(str(file), "lab", f"models/derain/{file.name}")
    assert load_model("s3://lab/models/derain").config == CONFIG
    with pytest.raises(ValueError, match=r"s3://lab/models/none/config\.json: there is no such file"):
        model_folder("s3://lab/models/none")
    s3_server.stop()
    assert model_folder("s3://lab/models/derain").is_relative_to(tmp_path / "cache")
    assert "using the cached model" in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("gcsfs") is not None, reason="the package is installed")
def test_a_package_that_is_not_installed_is_named():
    with pytest.raises(ImportError, match="reading gs:// needs gcsfs: pip install gcsfs"):
        model_folder("gs://lab/derain")


@pytest.mark.parametrize("address", ["ftpx://host/derain", "https:///derain"])
def test_other_addresses_are_refused(address, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ValueError, match=r"is not a known protocol|no host or bucket"):
        model_folder(address)
    assert list(tmp_path.iterdir()) == []
