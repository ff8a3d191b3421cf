"""Ray's list of a run's checkpoints, kept twice: Ray writes it in place, and where a disk is full that cuts it off.

Ray then refuses to start the run at all. The copy is made when a report is committed, so the checkpoints it names are
there until the next list is whole.
"""

from __future__ import annotations

import json
from typing import Any

from ray.train.v2._internal.constants import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME as RECORD
from ray.train.v2._internal.execution.storage import get_fs_and_path

COPY = f"{RECORD}.copy"


def place(address: str) -> tuple[Any, str]:
    """Return the file system (pyarrow's) and the folder on it of a run's checkpoints."""
    found: tuple[Any, str] = get_fs_and_path(address)
    return found


def make_room(address: str) -> None:
    """Create the run's folder. Raises OSError where it cannot."""
    filesystem, folder = place(address)
    filesystem.create_dir(folder)


def keep(address: str) -> None:
    """Copy the list beside itself. Raises OSError where it cannot."""
    filesystem, folder = place(address)
    filesystem.copy_file(f"{folder}/{RECORD}", f"{folder}/{COPY}.new")
    filesystem.move(f"{folder}/{COPY}.new", f"{folder}/{COPY}")


def mend(address: str) -> str | None:
    """Put the copy back where the list is cut off, or remove the run where the copy is no good; say so in a line."""
    filesystem, folder = place(address)
    if not filesystem.get_file_info(f"{folder}/{RECORD}").is_file or _is_whole(filesystem, folder, RECORD):
        return None
    cut_off = f"the list of checkpoints in {address} is cut off, as on a full disk"
    if _is_whole(filesystem, folder, COPY):
        filesystem.copy_file(f"{folder}/{COPY}", f"{folder}/{RECORD}")
        return f"{cut_off}: going on from the one before"
    filesystem.delete_dir(folder)
    return f"{cut_off}: starting anew"


def _is_whole(filesystem: Any, folder: str, name: str) -> bool:
    """Return whether it can be read, and all its checkpoints are there."""
    try:
        with filesystem.open_input_stream(f"{folder}/{name}") as file:
            results = json.loads(file.read())["checkpoint_results"]
        names = [result["checkpoint_dir_name"] for result in results]
    except (OSError, ValueError, LookupError, TypeError):
        return False
    return not any(
        found.type.name == "NotFound" for found in filesystem.get_file_info([f"{folder}/{n}" for n in names])
    )
