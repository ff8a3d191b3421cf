"""The user's cache of models: a folder for each, written as a whole, and the last answer of each address."""

import hashlib
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path


class Unreachable(Exception):
    """There was no answer; what the cache holds may be used."""


def folder() -> Path:
    """Return the cache: the folder `dgunet` in XDG_CACHE_HOME, or else in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dgunet"


def digest(*parts: str) -> str:
    """Return 12 characters of a hash of the parts."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def remembered(source: str, key: str, error: Exception) -> Path:
    """Return the folder of the last answer, and say so on stderr; raises ValueError if there is none."""
    answer = folder() / "answers" / key
    cached = folder() / answer.read_text() if answer.is_file() else None
    if cached is None or not cached.is_dir():
        raise ValueError(f"{source}: {error}, and the model is not in the cache") from error
    print(f"{source}: {error}; using the cached model", file=sys.stderr)
    return cached


def remember(key: str, model: Path) -> None:
    """Record `model`, a folder of the cache, as the last answer of the address with this key."""
    path = folder() / "answers" / key
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        file.write(model.name)
    Path(file.name).replace(path)


def fill(model: Path, fetch: Callable[[Path], Path]) -> None:
    """Let `fetch` write into an empty folder; the folder that it returns is renamed to `model`."""
    model.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=model.parent, prefix=".fetching-") as temporary:
        fetched = fetch(Path(temporary))
        try:
            fetched.rename(model)
        except OSError:
            if not model.is_dir():  # otherwise another process has fetched it meanwhile
                raise


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or else its kind."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200] or type(error).__name__
