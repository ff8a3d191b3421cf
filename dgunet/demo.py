"""A page to try models in a browser: drop a photo, compare before and after, see the stages, download.

It uses the standard library's HTTP server, bound to the loopback address by default. One photo is restored or explained
at a time; meanwhile, further photos are refused with status 503. POST requests need a token that the page holds, so
that no other page in the browser can use them. If the server listens on a loopback address, the Host header must name
one too: otherwise another page could read the token through a host name that resolves to this machine (DNS rebinding).
"""

import base64
import hmac
import html
import ipaddress
import json
import secrets
import socket
import sys
import threading
import time
from dataclasses import dataclass, replace
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import PurePosixPath
from string import Template
from typing import Any
from urllib.parse import parse_qs, urlsplit

import cv2
import numpy as np

from dgunet.console import explain as explain_error
from dgunet.explanation import explain
from dgunet.explanation_page import central, render_explanation
from dgunet.images import Photo, in_channels, quantise, read_photo, to_float
from dgunet.images.encode import encode
from dgunet.images.photo import Pixels
from dgunet.inference import restore
from dgunet.network import DGUNet

MAX_BYTES = 200 * 2**20
VIEW_SIDE = 2000  # pixels, the longer side of the pictures that are compared
PAGE = "demo.html"


@dataclass(frozen=True)
class Limits:
    """Limits for one photo: its size in megapixels, and the seconds to restore it."""

    megapixels: float = 12.0
    seconds: float = 120.0


class _TooLong(Exception):
    pass


class Demo:
    """Models by name, and the answers to the requests of the page."""

    def __init__(self, models: dict[str, DGUNet], limits: Limits) -> None:
        self.models, self.limits = models, limits
        self.token = secrets.token_urlsafe(16)
        self._restoring = threading.Lock()

    def page(self) -> str:
        """Return the page."""
        options = "".join(f"<option>{html.escape(name)}</option>" for name in self.models)
        stages = {name: model.config.num_stages for name, model in self.models.items()}
        return Template(resources.files("dgunet").joinpath(PAGE).read_text(encoding="utf-8")).substitute(
            models=options,
            stages=json.dumps(stages).replace("<", "\\u003c"),
            token=self.token,
            megapixels=f"{self.limits.megapixels:g}",
            seconds=f"{self.limits.seconds:g}",
        )

    def answer(self, path: str, data: bytes, model: str, stages: int, name: str) -> tuple[str, bytes]:
        """Return type and content of the answer to `restore` or `explain`.

        Raises:
            ValueError: the photo or the request is wrong; the message is for the user.
            BlockingIOError: another photo is being restored.
        """
        if model not in self.models:
            raise ValueError(f"there is no model {model}")
        photo = read_photo(data, max_pixels=int(1e6 * self.limits.megapixels))
        if not self._restoring.acquire(blocking=False):
            raise BlockingIOError("another photo is being restored; try again in a moment")
        try:
            if path == "explain":
                return "text/html; charset=utf-8", self._explained(photo, self.models[model], name).encode()
            return "application/json", json.dumps(self._restored(photo, self.models[model], stages, name)).encode()
        except _TooLong:
            raise ValueError(
                f"the photo takes more than {self.limits.seconds:g} s; give a smaller one, or use dgunet restore"
            ) from None
        finally:
            self._restoring.release()

    def _restored(self, photo: Photo, model: DGUNet, stages: int, name: str) -> dict[str, Any]:
        start = time.monotonic()
        pixels = restore(model, photo.pixels, num_stages=stages, progress=lambda *_: self._check(start))
        seconds = time.monotonic() - start
        height, width = pixels.shape[:2]
        data, _ = encode(replace(photo, pixels=pixels), "PNG")
        return {
            "before": _jpeg(photo.pixels),
            "restored": _jpeg(pixels),
            "file": _data_uri("image/png", data),
            "name": f"{PurePosixPath(name).stem or 'photo'}-restored.png",
            "seconds": seconds,
            "width": width,
            "height": height,
        }

    def _explained(self, photo: Photo, model: DGUNet, name: str) -> str:
        start = time.monotonic()
        rows, columns = central(*photo.pixels.shape[:2])
        image = to_float(in_channels(photo.pixels[rows, columns], model.config.image_channels))
        hooks = [module.register_forward_pre_hook(lambda *_: self._check(start)) for module in model.modules()]
        try:
            explanation = explain(model, image)
        finally:
            for hook in hooks:
                hook.remove()
        fact = f"{image.shape[1]}x{image.shape[0]} pixels: the whole photo, or its middle if it is larger."
        return render_explanation(explanation, title=name or "photo", facts=[fact])

    def _check(self, start: float) -> None:
        if time.monotonic() - start > self.limits.seconds:
            raise _TooLong


class _Handler(BaseHTTPRequestHandler):
    timeout = 60  # seconds without a byte from the client

    def __init__(self, demo: Demo, *arguments: Any) -> None:
        self.demo = demo
        super().__init__(*arguments)

    def log_message(self, *_: Any) -> None:
        """Write no log."""

    def do_GET(self) -> None:
        if not self._host_is_allowed():
            self._refuse(HTTPStatus.FORBIDDEN, "this server answers on its loopback address alone")
        elif urlsplit(self.path).path != "/":
            self._send(HTTPStatus.NOT_FOUND, "text/plain", b"there is no such page")
        else:
            self._send(HTTPStatus.OK, "text/html; charset=utf-8", self.demo.page().encode())

    def do_POST(self) -> None:
        url = urlsplit(self.path)
        fields = {name: values[0] for name, values in parse_qs(url.query).items()}
        path = url.path.strip("/")
        # All checks that need no photo come before it is read.
        if not self._host_is_allowed():
            self._refuse(HTTPStatus.FORBIDDEN, "this server answers on its loopback address alone")
            return
        if path not in ("restore", "explain"):
            self._refuse(HTTPStatus.NOT_FOUND, "there is no such action")
            return
        if not hmac.compare_digest(self.headers.get("X-Token", "").encode(), self.demo.token.encode()):
            self._refuse(HTTPStatus.FORBIDDEN, "this page is out of date: load it again")
            return
        try:
            length = int(self.headers.get("Content-Length", ""))
            if length < 0:  # `read` would wait for the end of the connection
                raise ValueError
        except ValueError:
            self._refuse(HTTPStatus.LENGTH_REQUIRED, "the request has no length")
            return
        if length > MAX_BYTES:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the file has more than {MAX_BYTES // 2**20} MB")
            return
        data = self.rfile.read(length)
        try:
            stages = int(fields.get("stages", "1"))
            kind, content = self.demo.answer(path, data, fields.get("model", ""), stages, fields.get("name", ""))
        except BlockingIOError as error:
            self._send(HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", str(error).encode())
        except ValueError as error:
            message = str(error).removeprefix("image in memory: ").splitlines()[0]
            self._send(HTTPStatus.BAD_REQUEST, "text/plain; charset=utf-8", message.encode())
        except Exception as error:  # torch is out of memory, an encoder fails: the server goes on
            self._send(HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain; charset=utf-8", explain_error(error).encode())
        else:
            self._send(HTTPStatus.OK, kind, content)

    def _host_is_allowed(self) -> bool:
        listening = ipaddress.ip_address(str(self.connection.getsockname()[0]))
        return not listening.is_loopback or _is_loopback(self.headers.get("Host", ""))

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        """Answer a request whose body is not wanted, and close the connection.

        A browser shows the answer only after it has sent all: up to `MAX_BYTES` are read and thrown away.
        """
        self.close_connection = True
        self._send(status, "text/plain; charset=utf-8", message.encode())
        self.connection.shutdown(socket.SHUT_WR)
        length = self.headers.get("Content-Length", "")
        left = min(int(length), MAX_BYTES) if length.isdecimal() else 0
        while left > 0 and (chunk := self.rfile.read(min(left, 2**16))):
            left -= len(chunk)

    def _send(self, status: HTTPStatus, kind: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(content)


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore a client that has disconnected; the default prints a traceback."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


def server(demo: Demo, host: str, port: int) -> ThreadingHTTPServer:
    """Return the server, which listens but does not answer before `serve_forever`. Raises OSError."""
    return _Server((host, port), partial(_Handler, demo))


def _is_loopback(host: str) -> bool:
    """Return whether the Host header names this machine."""
    name = urlsplit(f"//{host}").hostname or ""
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _jpeg(pixels: Pixels) -> str:
    height, width = pixels.shape[:2]
    scale = min(1.0, VIEW_SIDE / max(height, width))
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA).reshape(*size[::-1], -1)
    return _data_uri("image/jpeg", encode(Photo(quantise(to_float(pixels), np.uint8)), "JPEG")[0])


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
