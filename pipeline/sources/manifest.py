"""The manifest: one JSON line per clean image or real pair, sorted by pixel hash.

In the file `uri` is called "where" and `scene` is called "group".
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from pipeline.runtime.files import write_atomically

SplitName: TypeAlias = Literal["train", "val", "test"]
SPLITS: tuple[SplitName, ...] = get_args(SplitName)
KEYS = {"uri": "where", "scene": "group"}  # names that differ in the file
NAMES = {key: name for name, key in KEYS.items()}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One clean image: its URI, the hash of its pixels, height and width in pixels, its split.

    `scene` is the same for all images of one scene: the first 16 digits of the smallest pixel hash among them.
    `degraded` and `degraded_sha256` are URI and pixel hash of the partner in a real pair, otherwise absent.
    """

    uri: str
    sha256: str
    height: int
    width: int
    split: SplitName
    scene: str
    source: str
    degraded: str | None = None
    degraded_sha256: str | None = None

    @property
    def sort_key(self) -> tuple[str, str, str]:
        """The key by which the manifest is sorted."""
        return self.sha256, self.uri, self.degraded or ""


def write_manifest(path: Path, entries: Iterable[Entry]) -> None:
    """Write the manifest atomically: after any error the old one remains."""
    ordered = sorted(entries, key=lambda entry: entry.sort_key)
    lines = (
        json.dumps({KEYS.get(name, name): value for name, value in asdict(entry).items() if value is not None})
        for entry in ordered
    )
    write_atomically(path, "".join(f"{line}\n" for line in lines))


def read_manifest(path: Path) -> list[Entry]:
    """Read a manifest. Raises ValueError, naming path and line, if a line is not valid."""
    entries = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            entries.append(Entry(**{NAMES.get(key, key): value for key, value in json.loads(line).items()}))
        except (json.JSONDecodeError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}:{number}: not a line of a manifest ({error}); run prepare again") from error
    return entries
