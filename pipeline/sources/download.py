"""Downloads one file over HTTP, and resumes an interrupted download.

Received bytes are stored beside the target as `.NAME.partial`, and stay there after an error. The next download
requests only the rest (Range), if the server still has the same version (If-Range); a server without range requests
sends the whole file again. pooch calls this as its downloader, and compares the checksum.
"""

from __future__ import annotations

import errno
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import requests

from pipeline.sources.places import StorageError, describe_error

_ATTEMPTS = 4  # in a row without a new byte
_FIRST_WAIT = 0.25  # seconds; doubled after each attempt
_TIMEOUT = (15.0, 60.0)  # seconds, to connect and for the next bytes
_CHUNK = 2**16
_UNREACHED = (408, 429, 500, 502, 503, 504)  # status codes of servers that may answer later
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


class NotFetched(StorageError):
    """A URL did not return the file: the server is out of reach, the file is gone, or the answer is a web page."""


class Downloader:
    """Fetches one file, as the `downloader` of pooch.

    Args:
        target: path of the finished file; received bytes are kept beside it.
        size: bytes of the file, None if not known. No more are fetched.
        checked: whether a checksum is compared afterwards. Without one, parts are joined only if the server says that
            they belong to one version.
        progress: called with the number of bytes that have arrived since the last call; negative if they are discarded.
    """

    def __init__(self, target: Path, size: int | None, *, checked: bool, progress: Callable[[int], object]):
        self._partial = target.with_name(f".{target.name}.partial")
        self._version = target.with_name(f".{target.name}.version")
        self._size, self._checked, self._progress = size, checked, progress
        self.resumed = False

    def __call__(self, url: str, output_file: str, pooch: Any) -> None:
        """Fetch `url` to `output_file`.

        Raises NotFetched if the URL does not return the file, OSError if the disk is full or cannot be written.
        """
        if self._arrived() and not self._may_be_continued(url):
            self.discard()
        self.resumed = self._arrived() > 0
        self._progress(self._arrived())
        attempts, wait = 0, _FIRST_WAIT
        while True:
            before = self._arrived()
            try:
                if self._fetch_rest(url):
                    break
                error: Exception = EOFError("the connection ended before the file was complete")
            except requests.RequestException as reason:
                error = reason
            attempts = 1 if self._arrived() > before else attempts + 1
            if attempts >= _ATTEMPTS or not _may_succeed_later(error):
                kept = f"; the next try continues after {self._arrived()} bytes" if self._arrived() else ""
                raise NotFetched(f"{url}: {_reason(error)}{kept}") from error
            time.sleep(wait)
            wait *= 2
        self._version.unlink(missing_ok=True)
        self._partial.replace(output_file)

    def discard(self) -> None:
        """Delete the received bytes."""
        self._partial.unlink(missing_ok=True)
        self._version.unlink(missing_ok=True)

    def _arrived(self) -> int:
        return self._partial.stat().st_size if self._partial.exists() else 0

    def _fetch_rest(self, url: str) -> bool:
        """Request the missing bytes and append them. Return whether the file is complete."""
        arrived = self._arrived()
        if arrived and arrived == self._size:
            return True
        if arrived and (arrived > (self._size or arrived) or not self._may_be_continued(url)):
            self._start_anew()
            arrived = 0
        headers = {"Accept-Encoding": "identity"}  # ranges count the bytes of the file, not of its compression
        if arrived:
            headers["Range"] = f"bytes={arrived}-"
            if version := self._origin()[1]:
                headers["If-Range"] = version
        with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as answer:
            if answer.status_code == requests.codes.requested_range_not_satisfiable and arrived:
                self._start_anew()
                raise requests.ConnectionError("the server has no bytes beyond those received")
            answer.raise_for_status()
            if "text/html" in answer.headers.get("Content-Type", "") and not url.endswith((".html", ".htm")):
                raise NotFetched(
                    f"{url}: the answer is a web page, not the file: the address has changed, or needs a login"
                )
            total = self._total(url, answer, arrived)
            if not self._version.exists():
                self._version.write_text(json.dumps({"url": url, "version": _version(answer)}), encoding="utf-8")
            with self._partial.open("ab") as file:
                for chunk in answer.iter_content(_CHUNK):
                    file.write(chunk)
                    self._progress(len(chunk))
                    if total is not None and file.tell() > total:
                        self.discard()
                        raise NotFetched(f"{url}: the server sends more than the {total} bytes of the file")
        return total is None or self._arrived() == total

    def _total(self, url: str, answer: requests.Response, arrived: int) -> int | None:
        """Return the size of the whole file in bytes; discard what has arrived if the server sends all of it again."""
        length = answer.headers.get("Content-Length")
        total = int(length) if length and length.isdigit() else None
        if answer.status_code == requests.codes.partial_content:
            found = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
            if found is None or int(found[1]) != arrived:
                raise NotFetched(f"{url}: the server sends a different part from the one requested")
            total = int(found[2]) if found[2] != "*" else None
        elif arrived:
            self._start_anew()
            arrived = 0
        if total is not None and self._size is not None and total != self._size:
            self.discard()
            raise NotFetched(f"{url}: the file there has {total} bytes, the file of the data set {self._size}")
        total = self._size if total is None else total
        free = _free_bytes(self._partial.parent)
        if total is not None and total - arrived > free:
            raise OSError(
                errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} ({total - arrived} bytes are needed, {free} are free)",
                str(self._partial.parent),
            )  # fmt: skip
        return total

    def _start_anew(self) -> None:
        self._progress(-self._arrived())
        self.discard()
        self.resumed = False

    def _may_be_continued(self, url: str) -> bool:
        known_url, version = self._origin()
        return known_url == url and (self._checked or version is not None)

    def _origin(self) -> tuple[str | None, str | None]:
        """Return the URL of the received bytes and their version."""
        try:
            known = json.loads(self._version.read_text(encoding="utf-8"))
            return known["url"], known["version"]
        except (OSError, ValueError, KeyError, TypeError):
            return None, None


def _free_bytes(folder: Path) -> int:
    facts = os.statvfs(folder)
    return facts.f_bavail * facts.f_frsize


def _version(answer: requests.Response) -> str | None:
    """Return the version tag for If-Range, for which HTTP allows no weak tag."""
    tag: str | None = answer.headers.get("ETag")
    if tag and not tag.startswith("W/"):
        return tag
    modified: str | None = answer.headers.get("Last-Modified")
    return modified


def _may_succeed_later(error: Exception) -> bool:
    if isinstance(error, requests.HTTPError):
        return error.response is not None and error.response.status_code in _UNREACHED
    return not isinstance(error, (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema,
                                  requests.exceptions.MissingSchema, requests.TooManyRedirects))  # fmt: skip


def _reason(error: Exception) -> str:
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"the server answers {error.response.status_code} {error.response.reason}"
    return f"cannot be reached ({describe_error(error)})"
