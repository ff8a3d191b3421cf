"""The environment variables of the project, DGUNET_…: where files lie and how large the machine is.

No variable changes a result, so none of them is a value of params.yaml. README.md has a table of them.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import platformdirs
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from pipeline.runtime.files import PROJECT

PREFIX = "DGUNET_"
TEST_PREFIX = "DGUNET_TEST_"  # read only by tests
SERVING_LIMIT = "DGUNET_MAX_MEGAPIXELS"  # read by served models, which do not have this module


def _parse_range(text: Any) -> tuple[int, int]:
    least, _, most = str(text).partition(":")
    low, high = int(least), int(most or least)
    if not 1 <= low <= high:
        raise ValueError(text)
    return low, high


def _without_slash(address: str) -> str:
    return address.rstrip("/")


def _absolute(address: str) -> str:
    return _without_slash(address) if "://" in address else str(Path(address).absolute())


def _parse_names(text: Any) -> tuple[str, ...]:
    return tuple(name.strip() for name in str(text).split(",") if name.strip())


def _parse_prefix(text: str) -> str:
    if not re.match(r"https?://[^/]", text):
        raise ValueError(text)
    return _without_slash(text)


def _user_cache() -> str:
    return str(platformdirs.user_cache_path("dgunet") / "sets")


class Environment(BaseSettings):
    """The values of all DGUNET_… variables; an empty variable counts as not set.

    Each `description` says which values are allowed.

    Attributes:
        workers: minimum and maximum number of training workers; None: one per GPU, else one.
        cpus_per_worker: CPUs of each training worker; 0: an equal share of the nodes' CPUs.
        loader_processes: processes that make the batches of a worker; None: 4 on a GPU, else 0.
        storage: where checkpoints of running work are stored: a URL without a slash at the end, or an absolute path.
        shards: URL of the shards, or empty: they are in their own folders.
        shard_cache: folder on each machine for shards that come from a URL.
        shard_cache_gb: size limit of that folder, in 10⁹ bytes.
        checkpoint_minutes: the longest time between two checkpoints.
        max_failures: how many failures of workers a run survives without a new checkpoint in between.
        timeout_seconds: how long a run waits for a worker or a storage that does not answer.
        data: folder or URL of published image sets: sources of kind `dataset`, benchmarks, tests.
        data_mirror: URL in place of the scheme of all addresses of published sets, without a slash at the end.
        accept_terms: published sets whose terms the user accepts.
        driver_wait_seconds: how long a run waits for another driver of the same run to end, before it is refused.
        remote: URL of the DVC remote that infra/run.sh pushes results to, or empty: the one of .dvc/config, if any.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, extra="ignore", frozen=True, validate_default=False
    )

    workers: Annotated[
        tuple[int, int] | None,
        NoDecode,
        BeforeValidator(_parse_range),
        Field(description='a number of workers, or "least:most"'),
    ] = None
    cpus_per_worker: Annotated[float, Field(ge=0, allow_inf_nan=False, description="a number, 0 or more")] = 0.0
    loader_processes: Annotated[int | None, Field(ge=0, description="a whole number, 0 or more")] = None
    storage: Annotated[str, AfterValidator(_absolute), Field(description="a folder or a URL")] = str(
        PROJECT / ".cache" / "runs"
    )
    shards: Annotated[str, Field(description="a URL")] = ""
    shard_cache: Annotated[Path, Field(description="a folder")] = PROJECT / ".cache" / "shards"
    shard_cache_gb: Annotated[float, Field(ge=0, description="a number of gigabytes, 0 or more")] = 20.0
    checkpoint_minutes: Annotated[float, Field(ge=0, description="a number of minutes, 0 or more")] = 10.0
    max_failures: Annotated[int, Field(ge=0, description="a whole number, 0 or more")] = 3
    timeout_seconds: Annotated[int, Field(ge=0, description="a whole number of seconds, 0 or more")] = 600
    data: Annotated[str, AfterValidator(_without_slash), Field(description="a folder or a URL")] = Field(
        default_factory=_user_cache
    )
    data_mirror: Annotated[str, AfterValidator(_parse_prefix), Field(description="a URL, http:// or https://")] = ""
    accept_terms: Annotated[
        tuple[str, ...],
        NoDecode,
        BeforeValidator(_parse_names),
        Field(description="names of data sets, separated by commas"),
    ] = ()
    driver_wait_seconds: Annotated[int, Field(ge=0, description="a whole number of seconds, 0 or more")] = 0
    remote: Annotated[str, AfterValidator(_without_slash), Field(description="a folder or a URL")] = ""


def variable_name(field: str) -> str:
    """Return the environment variable of a field of `Environment`."""
    return f"{PREFIX}{field.upper()}"


def read_environment() -> Environment:
    """Return the variables as they are now; ValueError names each wrong one, its value and what is allowed."""
    known = {variable_name(field): info for field, info in Environment.model_fields.items()}
    names = [*known, SERVING_LIMIT]
    for name in sorted(os.environ):
        if name.startswith(PREFIX) and not name.startswith(TEST_PREFIX) and name not in names:
            (closest, *_) = [*difflib.get_close_matches(name, names, 1), f"one of {', '.join(names)}"]
            raise ValueError(f"{name} is not a variable of this project: rename it to {closest}, or unset it")
    try:
        return Environment()
    except ValidationError as error:
        mistakes = [(variable_name(str(each["loc"][0])), each["input"]) for each in error.errors(include_url=False)]
        raise ValueError(
            "; ".join(f"{name} must be {known[name].description}, not {value!r}" for name, value in mistakes)
        ) from None


@contextmanager
def restored_environ() -> Iterator[None]:
    """Give os.environ back its variables and values at the end."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update({name: value for name, value in before.items() if os.environ.get(name) != value})
