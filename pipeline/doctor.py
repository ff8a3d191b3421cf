"""Checks what a run needs before it starts: Ray cluster, MLflow, storage, shards, DVC remote, shared folders.

Each check ends within SECONDS and prints one line with the variable, the address, and what to do.
"""

from __future__ import annotations

import argparse
import importlib
import os
import queue
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import fsspec

from pipeline.cluster.resources import plan_resources
from pipeline.cluster.session import NotANode, check_cluster, nodes_without
from pipeline.cluster.storage_check import check_storage
from pipeline.runtime.entry_point import run_command
from pipeline.runtime.environment import Environment, read_environment
from pipeline.tracking import runs

SECONDS = 10.0  # for each
RAY, MLFLOW, FOLDERS = "Ray cluster", "MLflow", "shared folders"
Check = Callable[[], str]


class TooFewNodes(ValueError):
    """The workers do not fit on the nodes that have joined so far."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the result of each check; exit with 1 if one has failed."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.doctor", description=__doc__)
    parser.add_argument(
        "--wait", type=float, default=0.0, metavar="SECONDS", help="how long nodes of the cluster may take to join"
    )
    wait = parser.parse_args(arguments).wait
    environment = read_environment()
    failed: list[str] = []
    _import_clients(environment)
    if address := os.environ.get("RAY_ADDRESS"):
        _wait_for_nodes(address, environment, wait)
    for name, check in _checks(environment).items():
        if name == FOLDERS and RAY in failed:
            continue
        try:
            print(f"ok      {name}: {_within(SECONDS, _subject(name), check)}", flush=True)
        except (ValueError, OSError) as error:
            failed.append(name)
            print(f"failed  {error}", file=sys.stderr, flush=True)
    if failed:
        raise ValueError(f"checks that failed: {', '.join(failed)}")


def _import_clients(environment: Environment) -> None:
    """Import what the checks use before their time limits start: from a network drive this may take seconds."""
    if os.environ.get("RAY_ADDRESS"):
        importlib.import_module("pipeline.cluster.ray_internals")
    for place in _places(environment).values():
        with suppress(ImportError, ValueError):  # its check says so
            fsspec.get_filesystem_class(place.partition("://")[0] if "://" in place else "file")


def _checks(environment: Environment) -> dict[str, Check]:
    """Return the checks of what this run uses, by name."""
    checks: dict[str, Check] = {}
    address = os.environ.get("RAY_ADDRESS")
    if address:
        checks[RAY] = partial(_check_ray, address, environment)
    checks[MLFLOW] = _check_mlflow
    for variable, place in _places(environment).items():
        checks[variable] = partial(check_storage, variable, place)
    if address and "://" not in address and (shared := _shared_folders(environment)):
        checks[FOLDERS] = partial(_check_shared, address, shared)
    return checks


def _places(environment: Environment) -> dict[str, str]:
    places = {
        "DGUNET_STORAGE": environment.storage,
        "DGUNET_SHARDS": environment.shards,
        "DGUNET_REMOTE": environment.remote,
    }
    return {variable: place for variable, place in places.items() if place}


def _shared_folders(environment: Environment) -> dict[str, Path]:
    """Return the folders that all nodes must see, by the variable that sets them."""
    folders = {
        "DGUNET_STORAGE": environment.storage,
        "DGUNET_SHARDS": environment.shards or str(Path("data").absolute()),
    }
    return {variable: Path(place) for variable, place in folders.items() if "://" not in place}


def _check_ray(address: str, environment: Environment) -> str:
    state = check_cluster(address)
    if state is None:
        return address
    if environment.workers:
        try:
            plan_resources(list(state.nodes.values()))
        except ValueError as error:
            raise TooFewNodes(f"RAY_ADDRESS={address}: {error}") from None
    total = {name: sum(node.get(name, 0) for node in state.nodes.values()) for name in ("CPU", "GPU")}
    return f"{address}, {len(state.nodes)} nodes, {total['CPU']:g} CPUs, {total['GPU']:g} GPUs"


def _wait_for_nodes(address: str, environment: Environment, seconds: float) -> None:
    """Wait for up to `seconds` until this machine is a node of the cluster and the workers fit on the nodes.

    Prints once what is missing. Other faults are left to the checks.
    """
    deadline = time.monotonic() + seconds
    reported = False
    while time.monotonic() < deadline:
        try:
            _check_ray(address, environment)
            return
        except (NotANode, TooFewNodes) as error:
            if not reported:
                print(f"waiting for up to {seconds:g} s for nodes to join: {error}", file=sys.stderr, flush=True)
            reported = True
            time.sleep(1)
        except ValueError:
            return


def _check_mlflow() -> str:
    address = runs.tracking_address()
    if "://" in address and not address.startswith("sqlite:"):  # the first connection to SQLite creates the tables
        with runs.connected():
            pass
    return address


def _check_shared(address: str, folders: dict[str, Path]) -> str:
    for variable, folder in folders.items():
        folder.mkdir(parents=True, exist_ok=True)
        mark = folder / f".seen-{uuid.uuid4().hex}"
        mark.touch()
        try:
            if missing := nodes_without(address, mark):
                raise ValueError(
                    f"{variable}={folder}: the nodes {', '.join(missing)} do not see this folder: set the variable to "
                    "one that all nodes mount, or to a URL such as s3://bucket/runs"
                )
        finally:
            with suppress(OSError):
                mark.unlink()
    return ", ".join(map(str, folders.values()))


def _subject(name: str) -> str:
    """Return the variable that a check is about, with its value; the name of the check where it is not set."""
    variable = {RAY: "RAY_ADDRESS", MLFLOW: runs.ADDRESS}.get(name, name)
    value = os.environ.get(variable)
    return f"{variable}={value}" if value else name


def _within(seconds: float, subject: str, check: Check) -> str:
    """Return what a check of `subject` returns; ValueError if it takes longer."""
    results: queue.Queue[str | BaseException] = queue.Queue()

    def run() -> None:
        try:
            results.put(check())
        except BaseException as error:
            results.put(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        result = results.get(timeout=seconds)
    except queue.Empty:
        raise ValueError(
            f"{subject}: no answer within {seconds:g} s: correct the address, or open the network to it"
        ) from None
    if isinstance(result, BaseException):
        raise result
    return result


if __name__ == "__main__":
    run_command(main)
