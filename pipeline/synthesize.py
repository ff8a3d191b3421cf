"""Makes the shards of one task from the manifest, one Ray task per shard.

Work in progress is in a folder of its own, named by a fingerprint of everything that decides the result:

    .cache/synthesize/FINGERPRINT/progress.jsonl    one line per finished shard
    .cache/synthesize/FINGERPRINT/shards/           train/, val/ and test/, as in the output, and two lists

photographs.json lists the pixel hashes of the images in train and val. published.json lists the `dataset:` URIs of
those that belong to published sets; it is absent if there are none. `evaluate` refuses benchmarks that show their
scenes.

An interrupted run continues from there: intact shards are not made again. At the end the old output folder is deleted
and the new one is moved to its place. If DGUNET_SHARDS is a URL, the tar files are stored there and the output holds
only the index files and the two lists.
"""

from __future__ import annotations

import argparse
import errno
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
from pipeline.runtime.files import write_atomically
from pipeline.runtime.fingerprint import fingerprint
from pipeline.shards import store
from pipeline.shards.format import INDEX, PARTIAL, Index, ShardEntry, checksum, write_index, write_shard
from pipeline.sources.manifest import SPLITS, Entry, read_manifest
from pipeline.sources.overlaps import PHOTOGRAPHS, PUBLISHED, published
from pipeline.synthesis.settings import Synthesize
from pipeline.synthesis.tiles import ShardPlan, make_pairs, num_tiles, plan_shards, select_images

WORK_DIRS = Path(".cache/synthesize")
PROGRESS_LOG = "progress.jsonl"
SHARDS = "shards"


@dataclass(frozen=True)
class ShardJob:
    """One shard to make: its name below the shards' folder, its plan, and its entry if it was finished before."""

    name: str
    plan: ShardPlan
    finished: ShardEntry | None


def main() -> None:
    """Make the shards of one task."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.synthesize", description=__doc__)
    parser.add_argument("--task", required=True, help="a section of params.yaml")
    parser.add_argument("--manifest", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path, help="folder for train/, val/ and test/")
    args = parser.parse_args()
    settings = load_task_section(args.task, "synthesize", Synthesize)
    seed = load_section("seed", int)
    images = select_images(read_manifest(args.manifest), settings)
    recipe = {**merged_section(read_params(), args.task, "synthesize"), "seed": seed}
    work_dir = (WORK_DIRS / fingerprint("synthesize", args.task, recipe, _digest(images), store.in_use())).resolve()
    by_split = {split: [image for image in images if image.split == split] for split in SPLITS}
    num_pairs = {split: sum(num_tiles(image, settings) for image in by_split[split]) for split in SPLITS}
    names = {
        split: [f"{split}/{n:06d}.tar" for n in range(math.ceil(num_pairs[split] / settings.tiles_per_shard))]
        for split in SPLITS
    }
    for split in SPLITS:
        (work_dir / SHARDS / split).mkdir(parents=True, exist_ok=True)

    entries = _read_progress_log(work_dir)
    plans = (plan for split in SPLITS for plan in plan_shards(by_split[split], settings))
    all_names = [name for split in SPLITS for name in names[split]]
    jobs = (ShardJob(name, plan, entries.get(name)) for name, plan in zip(all_names, plans, strict=True))
    with (
        (work_dir / PROGRESS_LOG).open("a") as progress_log,
        session.session(),
        tqdm(desc=f"synthesize {args.task}", total=len(all_names), unit="shard", disable=None) as bar,
    ):
        for name, entry in tasks.map_unordered(partial(make_shard, work_dir / SHARDS, seed), jobs):
            entries[name] = entry
            progress_log.write(json.dumps({"shard": name, "entry": asdict(entry)}) + "\n")
            progress_log.flush()
            bar.update()
    for split in SPLITS:
        write_index(work_dir / SHARDS / split, Index(recipe, [entries[name] for name in names[split]]))
    seen = [image for split in ("train", "val") for image in by_split[split]]  # val chooses weights and windows
    hashes = sorted({image.sha256 for image in seen})
    write_atomically(work_dir / SHARDS / PHOTOGRAPHS, json.dumps(hashes, indent=0) + "\n")
    if images_of_sets := published(image.uri for image in seen):
        write_atomically(work_dir / SHARDS / PUBLISHED, json.dumps(images_of_sets, indent=0) + "\n")
    if store.in_use():
        indices: dict[str, str] = {split: checksum(work_dir / SHARDS / split / INDEX) for split in SPLITS}
        store.put_record(indices, {entries[name].sha256 for name in all_names})
    for abandoned in work_dir.rglob(f"*{PARTIAL}"):  # of a worker that was killed
        abandoned.unlink()
    _replace_folder(work_dir / SHARDS, args.out)
    shutil.rmtree(work_dir)
    print(f"{args.task}: " + ", ".join(f"{split} {num_pairs[split]}" for split in SPLITS), "pairs")


def make_shard(shards: Path, seed: int, job: ShardJob) -> tuple[str, ShardEntry]:
    """Make one shard, unless it exists and is intact. Runs on any node that can reach the folder, or the URL.

    Args:
        shards: folder of the shards in progress.
        seed: seed of the degradations.
        job: the shard.

    Returns:
        The shard's name and its entry for the index.
    """
    cv2.setNumThreads(1)  # Ray gives a task one core
    path = shards / job.name
    if job.finished and _is_intact(path, job.finished.sha256):
        return job.name, job.finished
    pairs = make_pairs(job.plan, job.plan.settings, seed)
    if not store.in_use():
        return job.name, write_shard(path, pairs)
    with tempfile.TemporaryDirectory() as folder:
        entry = write_shard(Path(folder, path.name), pairs)
        store.put(Path(folder, path.name), entry.sha256)
    return job.name, entry


def _is_intact(path: Path, sha256: str) -> bool:
    if store.in_use():
        return store.is_intact(sha256)
    return path.exists() and checksum(path) == sha256


def _read_progress_log(work_dir: Path) -> dict[str, ShardEntry]:
    """Return the finished shards of an interrupted run by name. The last line may be incomplete."""
    finished = {}
    path = work_dir / PROGRESS_LOG
    for line in path.read_text().splitlines() if path.exists() else ():
        with suppress(KeyError, TypeError, json.JSONDecodeError):
            content = json.loads(line)
            finished[content["shard"]] = ShardEntry(**content["entry"])
    return finished


def _replace_folder(folder: Path, target: Path) -> None:
    """Delete `target`, then move `folder` there, also to another file system; the new `target` appears complete."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(target, ignore_errors=True)
    try:
        folder.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        copy = target.with_name(f".{target.name}{PARTIAL}")
        shutil.rmtree(copy, ignore_errors=True)  # of a run that was killed while it copied
        shutil.copytree(folder, copy)
        copy.rename(target)


def _digest(images: Iterable[Entry]) -> str:
    digest = hashlib.sha256()
    for image in images:
        digest.update(json.dumps(asdict(image)).encode())
    return digest.hexdigest()


if __name__ == "__main__":
    run_command(main)
