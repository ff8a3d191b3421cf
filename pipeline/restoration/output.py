"""Where restored photographs are written to: a folder, or a URL of a folder. Each file appears whole or not at all.

OUT/NAME                    photographs or shards
OUT/SHARD.json              which photographs a shard holds, and which were refused, with reasons
OUT/.restore_many/          card.json: model, options and inputs of what OUT holds; files that are being written
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.shards.store import upload
from pipeline.sources.places import open_filesystem

FOLDER = ".restore_many"
CARD = f"{FOLDER}/card.json"


@dataclass(frozen=True)
class Output:
    """A folder by its absolute path, or by its URL. Names are relative, with forward slashes."""

    address: str

    @property
    def is_local(self) -> bool:
        """Whether it is a folder."""
        return "://" not in self.address

    @property
    def run_folder(self) -> str:
        """The folder or URL of what belongs to the run, not to its results."""
        return f"{self.address}/{FOLDER}"

    @contextmanager
    def new_file(self, name: str) -> Iterator[Path]:
        """Yield a path to write to; the file gets its name, and replaces another, at the end of the context alone.

        Raises:
            OSError: it cannot be written.
        """
        if not self.is_local:
            with tempfile.TemporaryDirectory() as folder:
                yield (path := Path(folder, "file"))
                filesystem, place = self._place(name)
                upload(filesystem, path, place)
            return
        partial, target = Path(self.run_folder, "partial", uuid.uuid4().hex), Path(self.address, name)
        partial.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            target.parent.mkdir(parents=True, exist_ok=True)
            partial.replace(target)
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)

    def write(self, name: str, content: bytes) -> None:
        """Write a file. Raises OSError."""
        with self.new_file(name) as path, path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file. Raises OSError."""
        self.write(name, json.dumps(content, indent=1).encode() + b"\n")

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Return the content of a JSON file; None where there is none, or it is damaged. Raises OSError."""
        filesystem, place = self._place(name)
        try:
            content = json.loads(filesystem.cat_file(place))
        except (FileNotFoundError, ValueError):
            return None
        return content if isinstance(content, dict) else None

    def size(self, name: str) -> int | None:
        """Return the bytes of a file; None where there is none."""
        filesystem, place = self._place(name)
        filesystem.invalidate_cache()
        try:
            facts = filesystem.info(place)
        except FileNotFoundError:
            return None
        return int(facts["size"]) if facts["type"] == "file" else None

    def is_empty(self) -> bool:
        """Whether it is absent, or holds no results. Raises OSError."""
        filesystem, place = self._place("")
        filesystem.invalidate_cache()
        with suppress(FileNotFoundError):
            names = filesystem.ls(place.rstrip("/"), detail=False)
            return all(name.rstrip("/").endswith(f"/{FOLDER}") for name in names)
        return True

    def remove_partial(self) -> None:
        """Remove what processes were writing when they were killed."""
        if self.is_local:
            shutil.rmtree(Path(self.run_folder, "partial"), ignore_errors=True)

    def _place(self, name: str) -> tuple[Any, str]:
        return open_filesystem(f"{self.address}/{name}")
