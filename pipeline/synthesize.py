"""Clean images -> shards of pairs, made by Ray tasks, one per shard.

Shards are made in a workshop folder named after all that they depend on; what an interrupted run left there intact is
kept. Finished shards move to the output at the end, so that it holds all of them or none.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
from tqdm import tqdm

from pipeline import cluster
from pipeline.fingerprint import fingerprint
from pipeline.manifest import SPLITS, read_manifest
from pipeline.params import Synthesize, door, load_section, read_params
from pipeline.shards import Index, ShardEntry, checksum, write_index, write_shard
from pipeline.tiles import Tile, chosen, pairs, plan

WORKSHOP = Path(".cache/synthesize")


@dataclass(frozen=True)
class Order:
    """One shard to be made."""

    path: Path
    tiles: Sequence[Tile]
    settings: Synthesize
    seed: int


def main() -> None:
    """Make the shards of one task."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.synthesize", description=__doc__)
    parser.add_argument("--task", required=True, help="a section of params.yaml")
    parser.add_argument("--manifest", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path, help="folder for train/, val/ and test/")
    given = parser.parse_args()
    settings = load_section(f"{given.task}.synthesize", Synthesize)
    seed = load_section("seed", int)
    images = chosen(read_manifest(given.manifest), settings)
    recipe = {**read_params()[given.task]["synthesize"], "seed": seed}
    workshop = (WORKSHOP / fingerprint(recipe, [asdict(image) for image in images])).resolve()
    orders = {}
    for split in SPLITS:
        (workshop / split).mkdir(parents=True, exist_ok=True)
        shards = plan([image for image in images if image.split == split], settings)
        orders[split] = [
            Order(workshop / split / f"{n:06d}.tar", tiles, settings, seed) for n, tiles in enumerate(shards)
        ]
    entries = _made([order for split in SPLITS for order in orders[split]], given.task)
    for split in SPLITS:
        write_index(workshop / split, Index(recipe, [entries[order.path] for order in orders[split]]))
        for order in orders[split]:
            _note(order.path).unlink()
    shutil.rmtree(given.out, ignore_errors=True)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(workshop, given.out)
    print(
        f"{given.task}: " + ", ".join(f"{split} {sum(len(o.tiles) for o in orders[split])}" for split in SPLITS),
        "pairs",
    )


def make(order: Order) -> tuple[Path, ShardEntry]:
    """Make one shard and its note; runs on any node that sees the workshop."""
    cv2.setNumThreads(1)  # Ray gives a task one core
    entry = write_shard(order.path, pairs(order.tiles, order.settings, order.seed))
    _note(order.path).write_text(json.dumps(asdict(entry)))
    return order.path, entry


def _made(orders: Sequence[Order], task: str) -> dict[Path, ShardEntry]:
    """Make what is not there yet and return the entry of every shard."""
    entries = {order.path: entry for order in orders if (entry := _intact(order.path))}
    missing = [order for order in orders if order.path not in entries]
    with tqdm(desc=f"synthesize {task}", total=len(orders), initial=len(entries), unit="shard", disable=None) as bar:
        if missing:
            with cluster.session():
                for path, entry in cluster.map_unordered(make, missing):
                    entries[path] = entry
                    bar.update()
    return entries


def _intact(path: Path) -> ShardEntry | None:
    """Return the entry of a shard that an earlier run finished, None if there is none or it was damaged since."""
    try:
        entry = ShardEntry(**json.loads(_note(path).read_text()))
        return entry if checksum(path) == entry.sha256 else None
    except (FileNotFoundError, TypeError, json.JSONDecodeError):
        return None


def _note(path: Path) -> Path:
    return path.with_suffix(".json")


if __name__ == "__main__":
    door(main)
