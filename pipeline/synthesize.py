"""Clean images -> shards of pairs, made by Ray tasks, one per shard.

Shards are made in a workshop folder named after all that they depend on; what an interrupted run left there intact is
kept. Finished shards move to the output at the end, so that it holds all of them or none. Where DGUNET_SHARDS names a
URL the shards go there instead, and the output holds their index alone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import shutil
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import cv2
from tqdm import tqdm

from pipeline.cluster import session, tasks
from pipeline.config.params import load_section, load_task_section, merged_section, read_params
from pipeline.runtime.entry_point import run_command
from pipeline.runtime.fingerprint import fingerprint
from pipeline.shards import store
from pipeline.shards.format import PARTIAL, Index, ShardEntry, checksum, write_index, write_shard
from pipeline.sources.manifest import SPLITS, Entry, read_manifest
from pipeline.synthesis.settings import Synthesize
from pipeline.synthesis.tiles import ShardPlan, chosen, num_tiles, pairs, plan

WORK_DIR = Path(".cache/synthesize")
PROGRESS_LOG = "made.jsonl"


@dataclass(frozen=True)
class ShardJob:
    """One shard to be made: its name below the workshop, and what is known of it if it was made before."""

    name: str
    tiles: ShardPlan
    made: ShardEntry | None


def main() -> None:
    """Make the shards of one task."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.synthesize", description=__doc__)
    parser.add_argument("--task", required=True, help="a section of params.yaml")
    parser.add_argument("--manifest", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path, help="folder for train/, val/ and test/")
    given = parser.parse_args()
    settings = load_task_section(given.task, "synthesize", Synthesize)
    seed = load_section("seed", int)
    images = chosen(read_manifest(given.manifest), settings)
    recipe = {**merged_section(read_params(), given.task, "synthesize"), "seed": seed}
    work_dir = (WORK_DIR / fingerprint("synthesize", given.task, recipe, _digest(images), store.in_use())).resolve()
    by_split = {split: [image for image in images if image.split == split] for split in SPLITS}
    num_pairs = {split: sum(num_tiles(image, settings) for image in by_split[split]) for split in SPLITS}
    names = {
        split: [f"{split}/{n:06d}.tar" for n in range(math.ceil(num_pairs[split] / settings.tiles_per_shard))]
        for split in SPLITS
    }
    for split in SPLITS:
        (work_dir / split).mkdir(parents=True, exist_ok=True)

    entries = _read_progress_log(work_dir)
    stretches = (stretch for split in SPLITS for stretch in plan(by_split[split], settings))
    every = [name for split in SPLITS for name in names[split]]
    orders = (ShardJob(name, tiles, entries.get(name)) for name, tiles in zip(every, stretches, strict=True))
    with (
        (work_dir / PROGRESS_LOG).open("a") as progress_log,
        session.session(),
        tqdm(desc=f"synthesize {given.task}", total=len(every), unit="shard", disable=None) as bar,
    ):
        for name, entry in tasks.map_unordered(partial(make, work_dir, seed), orders):
            entries[name] = entry
            progress_log.write(json.dumps({"shard": name, "entry": asdict(entry)}) + "\n")
            progress_log.flush()
            bar.update()
    for split in SPLITS:
        write_index(work_dir / split, Index(recipe, [entries[name] for name in names[split]]))
    (work_dir / PROGRESS_LOG).unlink()
    for abandoned in work_dir.rglob(f"*{PARTIAL}"):  # by a worker that was killed
        abandoned.unlink()
    shutil.rmtree(given.out, ignore_errors=True)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(work_dir, given.out)
    print(f"{given.task}: " + ", ".join(f"{split} {num_pairs[split]}" for split in SPLITS), "pairs")


def make(work_dir: Path, seed: int, order: ShardJob) -> tuple[str, ShardEntry]:
    """Make one shard if it is not there, intact; runs on any node that sees the workshop, or the URL."""
    cv2.setNumThreads(1)  # Ray gives a task one core
    path = work_dir / order.name
    if order.made and _is_intact(path, order.made.sha256):
        return order.name, order.made
    made = pairs(order.tiles, order.tiles.settings, seed)
    if not store.in_use():
        return order.name, write_shard(path, made)
    with tempfile.TemporaryDirectory() as folder:
        entry = write_shard(Path(folder, path.name), made)
        store.put(Path(folder, path.name), entry.sha256)
    return order.name, entry


def _is_intact(path: Path, sha256: str) -> bool:
    if store.in_use():
        return store.is_intact(sha256)
    return path.exists() and checksum(path) == sha256


def _read_progress_log(work_dir: Path) -> dict[str, ShardEntry]:
    """Return what an interrupted run has made, by name; it may have died in the middle of a line."""
    made = {}
    path = work_dir / PROGRESS_LOG
    for line in path.read_text().splitlines() if path.exists() else ():
        with suppress(KeyError, TypeError, json.JSONDecodeError):
            content = json.loads(line)
            made[content["shard"]] = ShardEntry(**content["entry"])
    return made


def _digest(images: Iterable[Entry]) -> str:
    digest = hashlib.sha256()
    for image in images:
        digest.update(json.dumps(asdict(image)).encode())
    return digest.hexdigest()


if __name__ == "__main__":
    run_command(main)
