"""Synthesis: pairs per second of 1 and 2 Ray workers, time of each part, and memory for many tiles.

    python -m benchmarks.synthesis [--tiles 100000]

Measures the task derain on the train photographs of data/manifest.jsonl, which `make repro` writes. The result goes to
benchmarks/results/synthesis.md.
"""

import argparse
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import cv2
import numpy as np
import ray

from dgunet.images import quantise, read_photo, to_float
from pipeline import synthesize
from pipeline.cluster import session, tasks
from pipeline.config.params import load_task_section
from pipeline.degradations import degrade
from pipeline.shards.format import Pair, ShardEntry, write_shard
from pipeline.sources.hashing import pixel_hash
from pipeline.sources.listing import read_source_image
from pipeline.sources.manifest import Entry, read_manifest, write_manifest
from pipeline.synthesis import tiles
from pipeline.synthesis.settings import Synthesize

PROJECT = Path(__file__).parents[1]
RESULTS = PROJECT / "benchmarks" / "results" / "synthesis.md"
TASK = "derain"
SHARDS, ROUNDS, TIMED = 12, 3, 2  # shards per measurement; alternating rounds; shards in which stages are timed
MEMORY = {"width": 480, "height": 320}  # pixels of the images that are only listed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiles", type=int, default=100_000, help="number of tiles for which memory is measured")
    parser.add_argument("--measure", choices=("driver", "worker"), help="used by the benchmark itself")
    parser.add_argument("--number", type=int, default=0)
    args = parser.parse_args()
    if args.measure:
        {"driver": measure_driver, "worker": measure_worker}[args.measure](args.number)
        print(peak_megabytes())
        return
    cv2.setNumThreads(1)
    parts = time_of_parts()
    speed = pairs_per_second()
    memory = {f"driver, {number} tiles": peak("driver", number) for number in (0, args.tiles // 10, args.tiles)} | {
        f"worker, {number} shards": peak("worker", number) for number in (0, 1, 16)
    }
    whole = sum(parts.values())
    settings = load_task_section(TASK, "synthesize", Synthesize)
    report = [
        "# Synthesis",
        "",
        f"`python -m benchmarks.synthesis`, {platform.machine()}, {os.cpu_count()} cores. Section `{TASK}` of "
        f"params.yaml: rain on RGB tiles of {settings.tile_size}², {settings.copies} copies, "
        f"{settings.tiles_per_shard} pairs per shard.",
        "",
        f"Clock time over {SHARDS} shards, workers warm, best of {ROUNDS} alternating rounds:",
        "",
        "| Ray workers | pairs/s | ratio |",
        "|---:|---:|---:|",
        *(f"| {n} | {speed[n]:.0f} | {speed[n] / speed[1]:.2f} |" for n in speed),
        "",
        f"Processor time of a worker ({TIMED} shards, images decoded once per shard):",
        "",
        "| | ms per pair | share |",
        "|---|---:|---:|",
        *(f"| {name} | {1e3 * each:.2f} | {100 * each / whole:.0f} % |" for name, each in parts.items()),
        "",
        "Peak of resident memory, each in a process of its own. Driver: plans a manifest of images of 480 × 320 that",
        "are only listed, distributes shards, writes progress and index; 0 tiles: Python and all its imports. Worker:",
        "makes real shards. Ray itself needs more memory (about 0.4 GB idle).",
        "",
        "| | MB |",
        "|---|---:|",
        *(f"| {name} | {megabytes:.0f} |" for name, megabytes in memory.items()),
    ]
    RESULTS.write_text("\n".join(report) + "\n")
    print("\n".join(report))


def sources() -> tuple[list[Entry], Synthesize]:
    settings = load_task_section(TASK, "synthesize", Synthesize)
    images = tiles.select_images(read_manifest(Path("data/manifest.jsonl")), settings)
    return [image for image in images if image.split == "train"], settings


def shard_jobs(number: int) -> list[synthesize.ShardJob]:
    """Return jobs for `number` full shards."""
    images, settings = sources()
    full = [plan for plan in tiles.plan_shards(images, settings) if len(plan) == settings.tiles_per_shard]
    return [synthesize.ShardJob(f"{n:06d}.tar", plan, None) for n, plan in enumerate(islice(cycle(full), number))]


def time_of_parts() -> dict[str, float]:
    """Return the seconds of processor time per pair of each part of making a shard."""
    settings = load_task_section(TASK, "synthesize", Synthesize)
    spent = dict.fromkeys(("decode the image", "check its hash", "degrade", "write the shard"), 0.0)
    count = 0
    for job in shard_jobs(TIMED):
        made: list[Pair] = []
        for source in job.plan.images:
            photo = clocked(
                spent, "decode the image", lambda s=source: read_photo(read_source_image(s.image.uri)).pixels
            )
            clocked(spent, "check its hash", lambda p=photo: pixel_hash(to_float(p)))
            for tile in (tile for tile in job.plan if tile.image == source.image):
                clean = photo[tile.top : tile.top + tile.size, tile.left : tile.left + tile.size]
                seed = tiles.seed_of(tile, 1)
                result = clocked(
                    spent, "degrade",
                    lambda c=clean, s=seed: (d := degrade(to_float(c), settings.degradation, s))._replace(
                        image=quantise(d.image, np.uint8)
                    ),
                )  # fmt: skip
                made.append(Pair(tile.key, clean, result.image, result.record))
        count += len(made)
        with tempfile.TemporaryDirectory() as folder:
            clocked(spent, "write the shard", lambda f=folder, m=made: write_shard(Path(f, "0.tar"), m))
    return {name: seconds / count for name, seconds in spent.items()}


def clocked(spent: dict[str, float], name: str, work: Callable[[], Any]) -> Any:
    started = time.process_time()
    result = work()
    spent[name] += time.process_time() - started
    return result


def pairs_per_second() -> dict[int, float]:
    os.environ.update(PYTHONPATH=str(PROJECT), RAY_AUTH_MODE="disabled")
    best = dict.fromkeys((1, 2), math.inf)
    work = shard_jobs(SHARDS)
    for _ in range(ROUNDS):
        for workers in (1, 2):
            ray.init("local", num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
            with tempfile.TemporaryDirectory() as folder:
                make = partial(synthesize.make_shard, Path(folder), 1)
                list(tasks.map_unordered(make, work[: 2 * workers]))  # processes started, code imported
                started = time.perf_counter()
                list(tasks.map_unordered(make, work))
                best[workers] = min(best[workers], time.perf_counter() - started)
            ray.shutdown()
    pairs = sum(len(job.plan) for job in work)
    return {workers: pairs / seconds for workers, seconds in best.items()}


def peak(who: str, number: int) -> float:
    """Return the peak memory in megabytes of a process that only does this."""
    command = [sys.executable, "-m", "benchmarks.synthesis", "--measure", who, "--number", str(number)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def peak_megabytes() -> float:
    """Return the peak of resident memory since the start of this program; getrusage includes the parent's peak."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def measure_worker(number: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for job in shard_jobs(number):
            synthesize.make_shard(Path(folder), 1, job)


def measure_driver(number: int) -> None:
    """Run the command itself, with workers that make nothing and return an index entry for each shard."""
    if number == 0:
        return
    settings = load_task_section(TASK, "synthesize", Synthesize)
    params = Path("params.yaml").read_text()
    entry = Entry(uri="", sha256="", split="train", scene="", source="listed", **MEMORY)
    images = math.ceil(number / tiles.num_tiles(entry, settings))

    def pretend(function: object, wanted: Iterable[synthesize.ShardJob]) -> Iterator[tuple[str, ShardEntry]]:
        for job in wanted:
            yield job.name, ShardEntry(Path(job.name).name, len(job.plan), 2**20, f"{hash(job.name):064x}", 64)

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("params.yaml").write_text(params)
        write_manifest(
            Path("manifest.jsonl"),
            (replace(entry, uri=f"photographs/{n:08d}.png", sha256=f"{n:016x}" * 4) for n in range(images)),
        )
        session.session, tasks.map_unordered = nullcontext, pretend
        sys.argv = ["synthesize", "--task", TASK, "--manifest", "manifest.jsonl", "--out", "out"]
        synthesize.main()
        os.chdir("/")


if __name__ == "__main__":
    main()
