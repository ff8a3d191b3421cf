"""The page to try models: its answers over HTTP, and the page itself in a real browser."""

import asyncio
import base64
import json
import socket
import struct
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest
from browser import CHROMIUM, opened

import dgunet
from dgunet.__main__ import main
from dgunet.checkpoint import save_model
from dgunet.demo import Demo, Limits, server
from dgunet.images import Photo, read_photo, write_photo
from dgunet.images.encode import encode
from dgunet.network import DGUNet, DGUNetConfig


def model() -> DGUNet:
    return DGUNet.with_seed(DGUNetConfig(width=4, growth=2, head_growth=2, num_stages=3), 0).eval()


def photo(height: int = 40, width: int = 60) -> Photo:
    return Photo(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


class Page:
    """A running demo, and requests as its page makes them."""

    def __init__(self, demo: Demo) -> None:
        self.demo = demo
        self.server = server(demo, "127.0.0.1", 0)
        self.address = f"http://127.0.0.1:{self.server.server_port}/"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def post(self, path: str, data: bytes, token: str | None = None, **fields: Any) -> tuple[int, str]:
        query = urlencode({"model": "a", "stages": 3, "name": "a.png", **fields})
        headers = {"X-Token": self.demo.token if token is None else token}
        request = urllib.request.Request(f"{self.address}{path}?{query}", data, headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


@pytest.fixture
def page() -> Iterator[Page]:
    running = Page(Demo({"a": model()}, Limits(megapixels=0.01)))
    yield running
    running.server.shutdown()
    running.server.server_close()


def decoded(uri: str) -> np.ndarray:
    return read_photo(base64.b64decode(uri.partition(",")[2])).pixels


@pytest.mark.parametrize("stages", [1, 3])
def test_a_photo_is_restored(page, stages):
    given = photo()
    status, text = page.post("restore", encode(given, "PNG")[0], stages=stages, name="holiday.jpeg")
    assert status == 200
    answer = json.loads(text)
    restored = dgunet.restore(model(), given.pixels, num_stages=stages)
    np.testing.assert_array_equal(decoded(answer["file"]), restored)
    assert (answer["width"], answer["height"], answer["name"]) == (60, 40, "holiday-restored.png")
    assert decoded(answer["before"]).shape == decoded(answer["restored"]).shape == (40, 60, 3)


def test_the_stages_are_shown(page):
    status, text = page.post("explain", encode(photo(), "PNG")[0])
    assert status == 200
    assert text.count("<h2>Stage") == 3


def test_what_is_wrong_is_said_in_a_line(page):
    data = encode(photo(), "PNG")[0]
    for request, status, message in (
        (("restore", b"garbage"), 400, "not a PNG, JPEG, TIFF, BMP, WebP, AVIF or HEIC image of a known kind"),
        (("restore", data[:-40]), 400, "damaged or truncated"),
        (("restore", encode(photo(101, 100), "PNG")[0]), 400, "100x101 are 10100 pixels, more than the 10000 allowed"),
        (("delete", data), 404, "there is no such action"),
    ):
        found = page.post(*request)
        assert found[0] == status
        assert found[1].startswith(message)
        assert "\n" not in found[1]
    assert page.post("restore", data, model="b") == (400, "there is no model b")
    assert page.post("restore", data, stages=9)[0] == 400
    assert page.post("restore", data, token="")[0] == 403
    assert page.post("restore", data)[0] == 200


def test_one_photo_at_a_time(page, monkeypatch):
    started, go_on = threading.Event(), threading.Event()

    def slow(_: DGUNet, pixels: np.ndarray, **__: Any) -> np.ndarray:
        started.set()
        assert go_on.wait(60)
        return pixels

    monkeypatch.setattr("dgunet.demo.restore", slow)
    data, answers = encode(photo(), "PNG")[0], []
    first = threading.Thread(target=lambda: answers.append(page.post("restore", data)[0]))
    first.start()
    assert started.wait(60)
    assert page.post("restore", data) == (503, "another photo is being restored; try again in a moment")
    go_on.set()
    first.join(60)
    assert answers == [200]


def test_a_photo_that_takes_too_long_is_given_up(page):
    page.demo.limits = Limits(megapixels=1.0, seconds=-1.0)
    status, message = page.post("restore", encode(photo(), "PNG")[0])
    assert (status, message) == (400, "the photo takes more than -1 s; give a smaller one, or use dgunet restore")
    assert page.post("explain", encode(photo(), "PNG")[0])[1].startswith("the photo takes more than -1 s")
    page.demo.limits = Limits(megapixels=1.0)
    assert page.post("explain", encode(photo(), "PNG")[0])[0] == 200, "the next one is not blocked"


class Client:
    """A client that sends what no library would."""

    def __init__(self, page: Page) -> None:
        self.socket = socket.create_connection(("127.0.0.1", page.server.server_port), timeout=30)

    def request(self, *headers: str, method: str = "POST", path: str = "/restore", body: bytes = b"") -> str:
        lines = [f"{method} {path} HTTP/1.1", *headers, "", ""]
        self.socket.sendall("\r\n".join(lines).encode() + body)
        return self.answer()

    def answer(self) -> str:
        received = b""
        with self.socket:
            while chunk := self.socket.recv(2**16):
                received += chunk
        return received.decode()


def test_a_host_name_of_another_page_is_refused(page):
    for name, allowed in (("localhost", True), ("127.0.0.1:7860", True), ("[::1]:80", True), ("evil.example", False)):
        answer = Client(page).request(f"Host: {name}", "Connection: close", method="GET", path="/")
        assert answer.startswith("HTTP/1.0 200" if allowed else "HTTP/1.0 403"), name
        assert (page.demo.token in answer) == allowed
    answer = Client(page).request("Host: evil.example", f"X-Token: {page.demo.token}", "Content-Length: 0")
    assert answer.startswith("HTTP/1.0 403")


def test_what_can_be_refused_is_refused_before_the_photo_arrives(page):
    assert Client(page).request("Host: localhost", "X-Token: wrong", "Content-Length: 0").startswith("HTTP/1.0 403")
    token = f"X-Token: {page.demo.token}"
    assert Client(page).request("Host: localhost", token, "Content-Length: -1").startswith("HTTP/1.0 411")
    assert (
        Client(page).request("Host: localhost", token, f"Content-Length: {10**9}", body=b"").startswith("HTTP/1.0 413")
    )
    client = Client(page)  # it announces more than it sends, and waits: the answer does not
    client.socket.sendall(b"POST /restore HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n")
    assert client.socket.recv(2**10).startswith(b"HTTP/1.0 403")
    client.socket.close()


def test_a_client_that_goes_away_leaves_no_traceback(page, monkeypatch, capsys):
    answered = threading.Event()
    original = Demo.answer

    def slow(*arguments: Any) -> tuple[str, bytes]:
        kind, _ = original(*arguments)
        answered.set()
        return kind, bytes(2**26)

    monkeypatch.setattr(Demo, "answer", slow)
    data = encode(photo(), "PNG")[0]
    client = Client(page)
    headers = [f"X-Token: {page.demo.token}", f"Content-Length: {len(data)}", "Host: localhost"]
    lines = ["POST /restore?model=a&stages=1 HTTP/1.1", *headers, "", ""]
    client.socket.sendall("\r\n".join(lines).encode() + data)
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close sends a reset
    client.socket.close()
    assert answered.wait(60)
    page.server.shutdown()
    page.server.server_close()  # waits for the threads of all requests
    assert capsys.readouterr().err == ""


def test_a_client_that_falls_silent_is_given_up(page, monkeypatch):
    monkeypatch.setattr("dgunet.demo._Handler.timeout", 0.2)
    client = Client(page)
    headers = [f"X-Token: {page.demo.token}", "Content-Length: 1000", "Host: localhost"]
    assert client.request(*headers) == ""


def test_a_port_that_is_taken_is_an_error_in_a_line(page, tmp_path, capsys):
    save_model(model(), tmp_path / "model", {})
    port = str(page.server.server_port)
    assert main(["demo", "--model", str(tmp_path / "model"), "--port", port]) == 2
    assert f"--host 127.0.0.1 --port {port}: " in capsys.readouterr().err


async def visit(address: str, file: Path, folder: Path) -> None:
    async with opened(address, folder / "profile", width=1000, height=800) as browser:
        assert await browser.value("document.getElementById('restore').disabled")
        await browser.choose_file("#file", file)
        await browser.wait_for("!document.getElementById('restore').disabled")
        await browser.value("document.getElementById('restore').click()")
        await browser.wait_for("document.getElementById('result').classList.contains('shown')")
        await browser.wait_for("document.querySelector('.restored').naturalWidth === 60")
        assert (await browser.value("document.getElementById('message').textContent")).startswith("Restored in ")
        assert await browser.value("document.getElementById('download').download") == "photo-restored.png"
        href = await browser.value("document.getElementById('download').href")
        np.testing.assert_array_equal(decoded(href), dgunet.restore(model(), photo().pixels))
        await browser.value(
            "slider.value = 20; slider.dispatchEvent(new Event('input'));window.open = url => window.opened = url; 0"
        )
        cut = "getComputedStyle(document.querySelector('.compare')).getPropertyValue('--cut')"
        assert await browser.value(cut) == "20%"
        await browser.value("document.getElementById('inside').click()")
        await browser.wait_for("!!window.opened")
        page_of_stages = await browser.value("fetch(window.opened).then(answer => answer.text())")
        assert page_of_stages.count("<h2>Stage") == 3
        (folder / "page.png").write_bytes(await browser.screenshot())
        (folder / "garbage.png").write_bytes(b"garbage")
        await browser.choose_file("#file", folder / "garbage.png")
        await browser.value("document.getElementById('restore').click()")
        await browser.wait_for("document.getElementById('message').className === 'error'")
        assert (await browser.value("document.getElementById('message').textContent")).startswith("not a PNG, JPEG")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
def test_the_page_in_a_browser(page, tmp_path):
    write_photo(tmp_path / "photo.png", photo())
    asyncio.run(visit(page.address, tmp_path / "photo.png", tmp_path))
    assert read_photo(tmp_path / "page.png").pixels.shape == (800, 1000, 3)
