"""Fetch a registered model from an MLflow registry: "models:/derain@champion" or "models:/derain/3".

The only module of the package that knows MLflow, an optional dependency. When the registry cannot be reached, the
cached version of the last answer is used.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dgunet.config import CARD_FILE, WEIGHTS_FILE
from dgunet.hub import cache

PREFIX = "models:/"
LOCAL_STORE = "mlflow.db"
_MLFLOW_DEFAULTS = {  # MLflow itself tries for minutes to reach a server, and shows a progress bar for 3 MB
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


def pull(uri: str) -> Path:
    """Return the local model folder of a registered model; it is part of the cache, so do not change it.

    The registry is MLFLOW_TRACKING_URI, or else `mlflow.db` in the current directory. The cache is the folder `dgunet`
    in XDG_CACHE_HOME, or else in ~/.cache.

    Raises:
        ValueError: there is no such model (the message lists the registered ones), no registry is configured or
            reached, or the version holds no model folder.
        ImportError: MLflow is not installed.
    """
    match = re.fullmatch(r"models:/([^/@:]+)(?:@([^/@:]+)|/(\d+))", uri)
    if match is None:
        raise ValueError(
            f'{uri}: write "models:/NAME@ALIAS", such as models:/denoise@champion, or "models:/NAME/VERSION"'
        )
    name, alias, number = match.groups()
    registry = _registry()
    place = str(file.absolute()) if (file := sqlite_path(registry)) else registry  # the same from any directory
    key = cache.digest(place, uri)
    # Parts of MLflow ask for the address themselves, and build one that is encoded twice where none is set.
    with _environment_defaults({**_MLFLOW_DEFAULTS, "MLFLOW_TRACKING_URI": registry}):
        try:
            version = _find_version(registry, uri, name, alias, number)
        except cache.Unreachable as error:
            return cache.remembered(uri, key, error)
        # The source is unique, the number is not: a new registry in place of a deleted one starts at 1 again.
        folder = cache.folder() / f"{quote(name)}-{version.version}-{cache.digest(place, str(version.source))}"
        if not folder.is_dir():
            _fetch(registry, f"{PREFIX}{name}/{version.version}", folder)
    cache.remember(key, folder)
    return folder


@dataclass(frozen=True)
class RegisteredVersion:
    """A version of a registered model: its aliases, mean PSNR in dB on its test split if it says one, and its time."""

    model: str
    number: int
    aliases: tuple[str, ...]
    psnr: float | None
    registered: datetime


def registered_versions() -> list[RegisteredVersion]:
    """Return all versions of the registry, by name, the newest first.

    Raises:
        ValueError: no registry is configured, or it cannot be read.
        ImportError: MLflow is not installed.
    """
    registry = _registry()
    with _environment_defaults({**_MLFLOW_DEFAULTS, "MLFLOW_TRACKING_URI": registry}):
        client, mlflow_exception = _client(registry, "the registry")
        try:
            models = {model.name: model.aliases for model in _pages(client.search_registered_models)}
            versions = _pages(client.search_model_versions)
        except mlflow_exception as error:
            raise ValueError(f"the registry {registry} cannot be read ({cache.first_line(error)})") from error
    found = [
        RegisteredVersion(
            version.name,
            int(version.version),
            tuple(sorted(alias for alias, number in models.get(version.name, {}).items() if number == version.version)),
            _number(version.tags.get("test.restored.psnr")),
            datetime.fromtimestamp(version.creation_timestamp / 1000, UTC),
        )
        for version in versions
    ]
    return sorted(found, key=lambda version: (version.model, -version.number))


def _pages(search: Callable[..., Any]) -> list[Any]:
    page = search()
    found = list(page)
    while page.token:
        page = search(page_token=page.token)
        found += page
    return found


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def sqlite_address(path: Path) -> str:
    """Return the URL of an SQLite file; a path may hold characters that mean something in a URL, such as % ? #.

    The URL of a file in the current directory is relative: MLflow makes the folder of an SQLite file without decoding
    its URL, so that another folder would appear.
    """
    from sqlalchemy.engine import URL

    absolute = path.absolute()
    database = absolute.name if absolute.parent == Path.cwd() else str(absolute)
    return URL.create("sqlite", database=database).render_as_string(hide_password=False)


def sqlite_path(address: str) -> Path | None:
    """Return the file of an SQLite URL; None for other addresses, and for a store in memory."""
    if not address.startswith("sqlite:"):
        return None
    from sqlalchemy.engine import make_url

    database = make_url(address).database
    return Path(database) if database and database != ":memory:" else None


def _registry() -> str:
    """Return the address of the registry; raises ValueError for a missing file, which MLflow would create."""
    configured = os.environ.get("MLFLOW_TRACKING_URI")
    if not configured:
        if not Path(LOCAL_STORE).is_file():
            raise ValueError(
                f"no model registry is configured: set MLFLOW_TRACKING_URI to its address, or run this in the folder "
                f"of {LOCAL_STORE}, or give a model folder instead of {PREFIX}..."
            )
        return sqlite_address(Path(LOCAL_STORE))
    path = sqlite_path(configured)
    if path is None:
        return configured
    if not path.is_file():
        raise ValueError(f"MLFLOW_TRACKING_URI={configured}: the file {path.absolute()} does not exist")
    return sqlite_address(path)


def _client(registry: str, subject: str) -> tuple[Any, type[Any]]:
    """Return MLflow's client and the type of its errors; ImportError says what to install."""
    try:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
    except ImportError as error:
        raise ImportError(f"{subject}: reading a model registry needs MLflow: pip install 'mlflow>=3.10,<4'") from error
    return MlflowClient(tracking_uri=registry, registry_uri=registry), MlflowException


def _find_version(registry: str, uri: str, name: str, alias: str | None, number: str | None) -> Any:
    """Return the registered version. Raises Unreachable without an answer, ValueError if there is none."""
    client, mlflow_exception = _client(registry, uri)
    try:
        return client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(name, number)
    except mlflow_exception as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise cache.Unreachable(f"the registry {registry} cannot be read ({cache.first_line(error)})") from error
        registered = ", ".join(_describe(model) for model in client.search_registered_models()) or "no model"
        raise ValueError(f"{uri}: not in the registry {registry}; it holds: {registered}") from error


def _describe(model: Any) -> str:
    latest = max((int(version.version) for version in model.latest_versions or []), default=0)
    aliases = "".join(f", @{alias} is {version}" for alias, version in sorted(model.aliases.items()))
    return f"{model.name} (newest version {latest}{aliases})"


def _fetch(registry: str, uri: str, folder: Path) -> None:
    from mlflow import artifacts
    from mlflow.exceptions import MlflowException

    def fetch(empty: Path) -> Path:
        try:
            artifacts.download_artifacts(
                artifact_uri=uri, dst_path=str(empty), tracking_uri=registry, registry_uri=registry
            )
        except (MlflowException, OSError) as error:
            raise ValueError(
                f"{uri}: the files cannot be fetched from {registry} ({cache.first_line(error)})"
            ) from error
        found = [path.parent for path in empty.rglob(CARD_FILE)]
        found = [path for path in found if (path / WEIGHTS_FILE).is_file()]
        if len(found) != 1:
            raise ValueError(f"{uri}: holds {len(found)} folders with config.json and model.safetensors instead of one")
        return found[0]

    cache.fill(folder, fetch)


@contextmanager
def _environment_defaults(defaults: dict[str, str]) -> Iterator[None]:
    """Set environment variables that MLflow reads at every request, unless the user has set them."""
    added = [name for name in defaults if name not in os.environ]
    os.environ.update({name: defaults[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
