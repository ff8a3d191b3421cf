"""Fetch a model folder from an address: https:// with the standard library, s3:// and others with fsspec."""

import hashlib
import http.client
import json
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from dgunet.config import CARD_FILE, WEIGHTS_FILE
from dgunet.console import is_terminal
from dgunet.hub import cache

TIMEOUT = 20.0  # seconds without an answer
MAX_CARD_BYTES = 4 * 2**20
_BLOCK = 2**20
_INSTALL = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}


def fetch_address(source: str) -> Path:
    """Return the folder of the cache that holds the model of an address; see `dgunet.hub.model_folder`."""
    address, expected = _parts(source)
    key = cache.digest(address)
    try:
        card = _read(f"{address}/{CARD_FILE}", MAX_CARD_BYTES)
        declared = _declared_sha256(card, address)
        if expected and declared and expected != declared:
            raise ValueError(f"{source}: {CARD_FILE} there says sha256 {declared}")
        name = re.sub(r"[^\w.-]", "_", address.rpartition("/")[2])[:100]
        folder = cache.folder() / f"{name}-{cache.digest(address, expected or '', card.decode(errors='replace'))}"
        if not folder.is_dir():
            cache.fill(folder, lambda empty: _download(address, card, expected or declared, empty))
    except cache.Unreachable as error:
        return cache.remembered(source, key, error)
    cache.remember(key, folder)
    return folder


def _parts(source: str) -> tuple[str, str | None]:
    address, _, fragment = source.partition("#")
    if fragment and not re.fullmatch(r"sha256=[0-9a-fA-F]{64}", fragment):
        raise ValueError(f"{source}: what follows # must be sha256= and 64 hexadecimal digits")
    url = urlsplit(address)
    if url.query:
        raise ValueError(f"{source}: the address of a folder is needed, without ?{url.query}")
    if not url.netloc:
        raise ValueError(f"{source}: no host or bucket in the address")
    return address.rstrip("/"), fragment.removeprefix("sha256=").lower() or None


def _declared_sha256(card: bytes, address: str) -> str | None:
    try:
        content = json.loads(card)
    except ValueError as error:
        raise ValueError(f"{address}/{CARD_FILE}: not valid JSON; is this the folder of a model?") from error
    declared = content.get("weights_sha256") if isinstance(content, dict) else None
    return declared if isinstance(declared, str) else None


def _download(address: str, card: bytes, sha256: str | None, folder: Path) -> Path:
    model = folder / "model"
    model.mkdir()
    (model / CARD_FILE).write_bytes(card)
    url = f"{address}/{WEIGHTS_FILE}"
    hashed = hashlib.sha256()
    with _opened(url) as (stream, num_bytes), (model / WEIGHTS_FILE).open("wb") as file:
        shown = f" {num_bytes / 1e6:.1f} MB" if num_bytes else ""
        if is_terminal(sys.stderr):
            print(f"fetching{shown} from {url}", file=sys.stderr)
        while block := stream.read(_BLOCK):
            hashed.update(block)
            file.write(block)
        if num_bytes is not None and file.tell() != num_bytes:
            raise ValueError(f"{url}: the connection ended after {file.tell()} of {num_bytes} bytes; try again")
    if sha256 and hashed.hexdigest() != sha256:
        raise ValueError(
            f"{url}: the sha256 of the received file is {hashed.hexdigest()} instead of {sha256}: damaged or changed"
        )
    return model


def _read(url: str, limit: int) -> bytes:
    with _opened(url) as (stream, num_bytes):
        content = stream.read(limit + 1)
    if len(content) > limit or (num_bytes is not None and len(content) != num_bytes):
        raise ValueError(f"{url}: incomplete, or larger than {limit // 2**20} MB; is this the folder of a model?")
    return content


@contextmanager
def _opened(url: str) -> Iterator[tuple[IO[bytes], int | None]]:
    """Yield a file's stream and, if known, its size in bytes. Raises Unreachable, ValueError, ImportError, OSError."""
    opener = _open_http if urlsplit(url).scheme in ("http", "https") else _open_fsspec
    with opener(url) as opened:
        yield opened


@contextmanager
def _open_http(url: str) -> Iterator[tuple[IO[bytes], int | None]]:
    request = urllib.request.Request(url, headers={"User-Agent": "dgunet", "Accept-Encoding": "identity"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            length = answer.headers.get("Content-Length")
            yield answer, int(length) if length else None
    except urllib.error.HTTPError as error:
        if error.code >= 500 or error.code == 429:
            raise cache.Unreachable(f"the server answers {error.code} {error.reason}") from error
        raise ValueError(f"{url}: the server answers {error.code} {error.reason}") from error
    except http.client.HTTPException as error:
        raise cache.Unreachable(f"the connection ended early ({cache.first_line(error)})") from error
    except OSError as error:  # URLError among them
        reason = getattr(error, "reason", error)
        if isinstance(error, urllib.error.URLError | ConnectionError | TimeoutError):
            raise cache.Unreachable(f"{urlsplit(url).netloc} does not answer ({reason})") from error
        raise


@contextmanager
def _open_fsspec(url: str) -> Iterator[tuple[IO[bytes], int | None]]:
    import fsspec

    scheme = urlsplit(url).scheme
    try:
        with fsspec.open(url, "rb") as stream:
            yield stream, getattr(stream, "size", None)
    except ImportError as error:
        package = _INSTALL.get(scheme, f"the fsspec package of {scheme}://")
        raise ImportError(f"{url}: reading {scheme}:// needs {package}: pip install {package}") from error
    except FileNotFoundError as error:
        raise ValueError(f"{url}: there is no such file") from error
    except PermissionError as error:
        raise ValueError(f"{url}: no permission ({cache.first_line(error)}); check the credentials") from error
    except cache.Unreachable:
        raise
    except OSError as error:
        if error.filename:  # of this machine: a full disk
            raise
        raise cache.Unreachable(f"it cannot be read ({cache.first_line(error)})") from error
    except ValueError as error:
        if "Protocol not known" not in str(error):
            raise
        raise ValueError(f"{url}: {scheme}:// is not a known protocol") from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("botocore", "aiobotocore", "aiohttp"):
            raise
        raise cache.Unreachable(f"it cannot be read ({cache.first_line(error)})") from error
