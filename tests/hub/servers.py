"""Servers for the tests of models that lie elsewhere: a folder over HTTP with faults, a Hub for a few repositories."""

import base64
import hashlib
import http.server
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


class Server(http.server.ThreadingHTTPServer):
    """Serves `folder`; `fault` makes it answer otherwise, `requests` counts the paths that were asked for."""

    def __init__(self, folder: Path, handler: type[http.server.BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.folder = folder
        self.fault: str | None = None
        self.requests: Counter[str] = Counter()
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.thread = threading.Thread(target=self.serve_forever, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        """Answer no more."""
        self.shutdown()
        self.server_close()
        self.thread.join()


@contextmanager
def running(folder: Path, handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[Server]:
    """A server that runs meanwhile; it may be stopped before."""
    server = Server(folder, handler)
    try:
        yield server
    finally:
        server.stop()


class FolderHandler(http.server.BaseHTTPRequestHandler):
    """GET of files; the faults: "cut" ends weights in the middle, "changed" alters them, a number is a status."""

    server: Server

    def log_message(self, *_: Any) -> None:
        """Write no log."""

    def do_GET(self) -> None:
        """Answer with the file, or with the fault."""
        path = unquote(urlsplit(self.path).path)
        self.server.requests[path] += 1
        fault, file = self.server.fault, self.server.folder / path.lstrip("/")
        if fault is not None and fault.isdigit():
            self.send_error(int(fault))
            return
        if path.startswith("/moved/"):
            self.send_response(302)
            self.send_header("Location", path.removeprefix("/moved"))
            self.end_headers()
            return
        if not file.is_file():
            self.send_error(404)
            return
        content = file.read_bytes()
        is_weights = file.name == "model.safetensors"
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if is_weights and fault == "changed":
            content = content[:-1] + bytes([content[-1] ^ 1])
        self.wfile.write(content[: len(content) // 2] if is_weights and fault == "cut" else content)


class HubHandler(http.server.BaseHTTPRequestHandler):
    """What huggingface_hub asks of a Hub: repositories are folders OWNER/NAME; a commit replaces files.

    The fault "private" answers as the Hub does where there is no access.
    """

    server: Server

    def log_message(self, *_: Any) -> None:
        """Write no log."""

    def _json(self, content: Any, status: int = 200, **headers: str) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _revision(self, folder: Path) -> str:
        hashed = hashlib.sha1(usedforsecurity=False)
        for file in sorted(folder.iterdir()):
            hashed.update(file.name.encode() + file.read_bytes())
        return hashed.hexdigest()

    def do_HEAD(self) -> None:
        """Answer as to GET, without the content."""
        self.do_GET()

    def do_GET(self) -> None:
        """Answer what a repository holds, or with one of its files."""
        path = unquote(urlsplit(self.path).path).strip("/").split("/")
        self.server.requests[self.path] += 1
        name = "/".join(path[2:4] if path[0] == "api" else path[:2])
        folder = self.server.folder / name
        if self.server.fault == "down":
            self.send_error(503)
            return
        if not folder.is_dir() or self.server.fault == "private":
            self._json({"error": "Repository not found"}, 401, X_Error_Code="RepoNotFound")
            return
        revision = self._revision(folder)
        asked = path[5] if path[0] == "api" and len(path) > 5 else path[3] if path[0] != "api" else "main"
        if asked not in ("main", revision):
            self._json({"error": "no revision"}, 404, X_Error_Code="RevisionNotFound")
            return
        files = [{"rfilename": file.name} for file in sorted(folder.iterdir())]
        if path[0] == "api" and path[4:5] == ["tree"]:
            tree = [
                {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": "0" * 40}
                for file in sorted(folder.iterdir())
            ]
            self._json(tree)
            return
        if path[0] == "api":
            self._json({"id": name, "modelId": name, "sha": revision, "private": False, "tags": [], "siblings": files})
            return
        content = (folder / path[-1]).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", revision)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_POST(self) -> None:
        """Make a repository, say how files are to be sent, take a commit."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = unquote(urlsplit(self.path).path).strip("/").split("/")
        self.server.requests[self.path] += 1
        if path[:3] == ["api", "repos", "create"]:
            wanted = json.loads(body)
            name = f"{wanted['organization']}/{wanted['name']}" if wanted.get("organization") else wanted["name"]
            (self.server.folder / name).mkdir(parents=True, exist_ok=True)
            self._json({"url": f"{self.server.address}/{name}"})
        elif "preupload" in path:
            files = json.loads(body)["files"]
            answer = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]
            self._json({"files": answer})
        elif "commit" in path:
            folder = self.server.folder / "/".join(path[2:4])
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    (folder / entry["value"]["path"]).write_bytes(base64.b64decode(entry["value"]["content"]))
            revision = self._revision(folder)
            url = f"{self.server.address}/{'/'.join(path[2:4])}"
            self._json({"commitUrl": f"{url}/commit/{revision}", "commitOid": revision, "hookOutput": ""})
        else:
            self._json({}, 200)
