"""The manifest: one line per clean image, in the order of pixel hashes; and how groups of images are split.

    u = sha256(seed, smallest pixel hash of the group) / 2^256
    test if u < s_test,   val if u < s_test + s_val,   else train

so the split of a photograph depends on its scene, the seed and the shares: not on names, order or other scenes.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

SplitName: TypeAlias = Literal["train", "val", "test"]
SPLITS: tuple[SplitName, ...] = get_args(SplitName)
_MAX_SEEDS = 10_000


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One clean image: what to open, the hash of its pixels, its sides in pixels, its split.

    `group` is equal for images of one scene: the first 16 digits of the smallest pixel hash among them. `degraded` and
    `degraded_sha256` are the partner in a real pair and its pixels' hash, None (and absent from the file) otherwise.
    """

    where: str
    sha256: str
    height: int
    width: int
    split: SplitName
    group: str
    source: str
    degraded: str | None = None
    degraded_sha256: str | None = None

    @property
    def order(self) -> tuple[str, str, str]:
        """Its place in the manifest."""
        return self.sha256, self.where, self.degraded or ""


def split_of(group: str, *, seed: int, shares: Mapping[SplitName, float]) -> SplitName:
    """Return the split of a group of images; `shares` has `val` and `test`, the rest is train."""
    draw = int(hashlib.sha256(f"{seed}:{group}".encode()).hexdigest(), 16) / 2**256
    if draw < shares["test"]:
        return "test"
    return "val" if draw < shares["test"] + shares["val"] else "train"


def check_splits(groups: Sequence[str], *, seed: int, shares: Mapping[SplitName, float], origin: str) -> None:
    """Raise ValueError, naming `origin` and what to do, if a split that should have images has none."""
    counts = Counter(split_of(group, seed=seed, shares=shares) for group in groups)
    empty = [split for split in SPLITS if not counts[split] and shares.get(split, 1) > 0]
    if not empty:
        return
    better = smallest_filling_seed(groups, shares)
    raise ValueError(
        f"{origin}: no image for {' and '.join(empty)}: {len(groups)} different scenes fall into "
        f"{', '.join(f'{split} {counts[split]}' for split in SPLITS)}. Add images, or change prepare.split "
        f"(val {shares['val']}, test {shares['test']})"
        + (
            f", or set seed to {better}, the smallest that fills all splits"
            if better is not None
            else "; no seed helps"
        )
    )


def smallest_filling_seed(groups: Sequence[str], shares: Mapping[SplitName, float]) -> int | None:
    """Return the smallest seed that leaves no split empty (of those with a share); None if none was found."""
    wanted = {split for split in SPLITS if shares.get(split, 1) > 0}
    if len(groups) < len(wanted):
        return None
    for seed in range(_MAX_SEEDS):
        if wanted <= {split_of(group, seed=seed, shares=shares) for group in groups}:
            return seed
    return None


def write_manifest(path: Path, entries: Iterable[Entry]) -> None:
    """Write the lines to a temporary name, then rename: on any error the old manifest stays."""
    ordered = sorted(entries, key=lambda entry: entry.order)
    lines = (json.dumps({key: value for key, value in asdict(entry).items() if value is not None}) for entry in ordered)
    write_whole(path, "".join(f"{line}\n" for line in lines))


def read_manifest(path: Path) -> list[Entry]:
    """Read all lines. Raises ValueError naming path and line if one is not a manifest's."""
    entries = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            entries.append(Entry(**json.loads(line)))
        except (json.JSONDecodeError, TypeError) as error:
            raise ValueError(f"{path}:{number}: not a line of a manifest ({error}); run prepare again") from error
    return entries


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that it appears complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
