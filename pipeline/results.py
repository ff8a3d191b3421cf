"""Brings results from a cluster to another clone: the objects that DVC stores, and the dvc.lock of a commit.

dvc.lock is not in git. After each stage, the driver on a cluster stores it beside the checkpoints, under the commit of
the checkout, and pushes the objects that it names to the DVC remote. In a clone of that commit `make fetch` gets both.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil
from dvc.lock import make_lock

from pipeline.cluster.checkpoints import LOCKS, filesystem
from pipeline.runtime.entry_point import run_command
from pipeline.runtime.environment import read_environment
from pipeline.runtime.files import write_atomically
from pipeline.runtime.provenance import commit

LOCK = Path("dvc.lock")
FORMER = Path(".cache/dvc.lock.former")
CHANGED = "+changes"  # as `commit` says it
REMOTE = "cluster"
DVC_LOCKS = Path(".dvc/tmp/rwlock")  # which process of DVC uses which path


def main(arguments: Sequence[str] | None = None) -> None:
    """Store the results of a stage, fetch all, or prepare a new driver."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.results", description=__doc__)
    actions = parser.add_subparsers(required=True, dest="action")
    actions.add_parser("prepare", help="make DGUNET_REMOTE the DVC remote, and fetch the run cache of earlier runs")
    actions.add_parser("store", help="after prepare: push outputs and run cache, store dvc.lock by commit")
    actions.add_parser("fetch", help="get dvc.lock of this commit, and all outputs that it names")
    action = parser.parse_args(arguments).action
    {"prepare": _prepare, "store": _store, "fetch": _fetch}[action]()


def _set_remote() -> None:
    """Make DGUNET_REMOTE the default remote of this clone; ValueError if there is no remote at all."""
    if remote := read_environment().remote:
        _dvc("remote", "add", "--local", "--quiet", "--force", "--default", REMOTE, remote)
    elif not _dvc("remote", "list", output=True).strip():
        raise ValueError("there is no DVC remote: set DGUNET_REMOTE to a URL, such as s3://bucket/dvc")


def _prepare() -> None:
    _release_locks(DVC_LOCKS)
    _set_remote()
    # The run cache records the inputs of finished stages: `dvc repro --pull` fetches their outputs.
    _dvc("fetch", "--run-cache", "--quiet")


def _release_locks(path: Path) -> None:
    """Remove the locks of killed DVC processes from DVC's lock file `path`.

    DVC itself removes a lock if no process has its process id. In a container, or in a checkout that several machines
    see, another process soon has the same id, and DVC would refuse to start. DVC also cannot read a lock file that a
    killed process has written only in part.
    """
    if not path.exists():
        return
    with make_lock(f"{path}.lock", tmp_dir=str(path.parent)):
        try:
            locks = json.loads(path.read_text())
        except json.JSONDecodeError:
            locks = {}
        readers = {
            file: [each for each in held if _is_dvc(each["pid"])] for file, held in locks.get("read", {}).items()
        }
        writers = {file: held for file, held in locks.get("write", {}).items() if _is_dvc(held["pid"])}
        kept = {"write": writers, "read": {file: held for file, held in readers.items() if held}}
        write_atomically(path, json.dumps(kept))


def _is_dvc(number: int) -> bool:
    """Return whether a process of this number runs the command dvc."""
    try:
        return "dvc" in map(os.path.basename, psutil.Process(number).cmdline())
    except psutil.Error:
        return False


def _store() -> None:
    _dvc("push", "--run-cache", "--quiet")
    address = _lock_address(commit())
    files, path = filesystem(address)
    files.create_dir(path.rpartition("/")[0])
    with files.open_output_stream(f"{path}.new") as file:
        file.write(LOCK.read_bytes())
    files.move(f"{path}.new", path)


def _fetch() -> None:
    _set_remote()
    found = commit().removesuffix(CHANGED)
    if found == "unknown":
        raise ValueError("results are stored by commit, but git cannot tell the commit of this checkout")
    content, of = _read(found), found
    if content is None:
        of = found + CHANGED
        content = _read(of)
    if content is None:
        raise ValueError(
            f"{read_environment().storage} has no results for commit {found[:10]}: check out the commit that the "
            "cluster has run, or set DGUNET_STORAGE to what it was there"
        )
    if of != found:
        print(f"the cluster ran commit {found[:10]} with changes that were not committed", file=sys.stderr)
    if LOCK.exists() and LOCK.read_bytes() != content:
        FORMER.parent.mkdir(exist_ok=True)
        LOCK.replace(FORMER)
        print(f"the former dvc.lock is {FORMER}", file=sys.stderr)
    write_atomically(LOCK, content.decode())
    _dvc("pull", "--quiet")
    print(f"results of commit {of[:10]}: models/ and reports/ are here")


def _lock_address(commit: str) -> str:
    return f"{read_environment().storage}/{LOCKS}/{commit}/{LOCK.name}"


def _read(commit: str) -> bytes | None:
    files, path = filesystem(_lock_address(commit))
    try:
        with files.open_input_stream(path) as file:
            return bytes(file.read())
    except FileNotFoundError:
        return None


def _dvc(*arguments: str, output: bool = False) -> str:
    """Run a command of DVC and return what it prints, if `output`; ValueError with its message if it fails."""
    command = [sys.executable, "-m", "dvc", *arguments]
    variables = {**os.environ, "DVC_NO_ANALYTICS": "true"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=variables)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
        message = lines[-1].removeprefix("ERROR: ") if lines else done.stderr.strip()
        raise ValueError(f"dvc {' '.join(arguments)}: {message}")
    return done.stdout if output else ""


if __name__ == "__main__":
    run_command(main)
