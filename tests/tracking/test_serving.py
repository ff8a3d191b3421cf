"""A registered model behind `mlflow models serve`: HTTP with images in base64, answers in a line where one is wrong."""

import base64
import concurrent.futures
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import PROJECT

import dgunet
from dgunet.checkpoint import save_model
from dgunet.images import Photo, read_photo
from dgunet.images.encode import encode
from dgunet.network import DGUNet, DGUNetConfig
from pipeline.tracking import registry, runs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(
        "ignore::ResourceWarning", "ignore::DeprecationWarning:mlflow", "ignore:.*Any type hint is inferred:UserWarning"
    ),
]
Post = Callable[[Any], tuple[int, Any]]


def png(height: int, width: int, seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return encode(Photo(pixels), "PNG")[0]


def in_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.fixture
def post(store, tmp_path) -> Iterator[Post]:
    """A function that posts JSON to a server of the champion; returns status and answer."""
    network = DGUNet.with_seed(DGUNetConfig(width=4, growth=2, head_growth=2, num_stages=2), 0)
    save_model(network, tmp_path / "model", {"task": "derain"})
    with runs.run("derain", "a run", {}, {}, system_metrics=False):
        registry.set_champion(registry.register("derain", tmp_path / "model", "0", {}), "the first", None)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    programs = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"  # mlflow starts uvicorn by its name
    environment |= {
        "PATH": programs,
        "MLFLOW_TRACKING_URI": store,
        "DGUNET_MAX_MEGAPIXELS": "0.01",
        "OMP_NUM_THREADS": "1",
    }
    command = [
        "models",
        "serve",
        "--model-uri",
        "models:/derain@champion",
        "--env-manager",
        "local",
        "--port",
        str(port),
    ]
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *command], cwd=tmp_path, env=environment, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
    address = f"http://127.0.0.1:{port}"

    def send(content: Any) -> tuple[int, Any]:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        request = urllib.request.Request(f"{address}/invocations", body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    try:
        wait(f"{address}/ping", server, tmp_path / "log")
        yield send
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, 9)
        server.wait()


def wait(address: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    for _ in range(600):
        assert server.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(log.read_text())


def test_the_server_restores_and_says_what_is_wrong(post, tmp_path):
    model, image = dgunet.load_model(tmp_path / "model"), png(20, 30)
    status, answer = post({"inputs": [in_base64(image), in_base64(png(8, 9, seed=1))]})
    assert status == 200
    restored = [read_photo(base64.b64decode(text)).pixels for text in answer["predictions"]]
    assert [pixels.shape for pixels in restored] == [(20, 30, 3), (8, 9, 3)]
    wanted = dgunet.restore(model, read_photo(image).pixels).astype(int)
    assert np.abs(restored[0] - wanted).max() <= 1

    pixels = np.random.default_rng(2).random((8, 8, 3), np.float32)
    status, answer = post({"inputs": [pixels.tolist()]})
    assert status == 200
    np.testing.assert_allclose(answer["predictions"][0], dgunet.restore(model, pixels), atol=1e-5)

    for request, reason in {
        in_base64(b"garbage"): "image 1: image in memory: not a PNG, JPEG, TIFF, BMP, WebP, AVIF or HEIC image",
        in_base64(b""): "image 1: image in memory: an empty file",
        in_base64(image[: len(image) // 2]): "image 1: image in memory: damaged or truncated",
        in_base64(png(101, 100)): "image 1: image in memory: 100x101 are 10100 pixels, more than the 10000",
        "not base64!": "image 1: the text is not base64",
    }.items():
        status, answer = post({"inputs": [request]})
        assert status == 400, answer
        assert answer["message"].startswith(reason), answer
        assert "\n" not in answer["message"]
        assert "Traceback" not in json.dumps(answer)
    for body in (b"", b"{", b'{"image": "x"}', b'{"inputs": 7}'):
        status, answer = post(body)
        assert 400 <= status < 500, (body, answer)

    with concurrent.futures.ThreadPoolExecutor(50) as threads:
        answers = list(threads.map(lambda number: post({"inputs": [in_base64(png(16, 16, number))]}), range(50)))
    assert {status for status, _ in answers} == {200}
    for number, (_, answer) in enumerate(answers):
        (text,) = answer["predictions"]
        wanted = dgunet.restore(model, read_photo(png(16, 16, number)).pixels).astype(int)
        assert np.abs(read_photo(base64.b64decode(text)).pixels - wanted).max() <= 1, "each gets its own"
    assert not Path(PROJECT / "mlruns").exists()
