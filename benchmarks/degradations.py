"""Speed of each degradation, beside decoding, encoding and the PNG compression of a tile.

    python -m benchmarks.degradations [--rounds 8]

The result goes to benchmarks/results/degradations.md. Columns of one core are processor time. Rounds of all
degradations alternate and the best round of each counts, so that other load on the machine affects all equally. The
ratio of two workers is of clock time; runs of one process and of two alternate.
"""

import argparse
import math
import os
import platform
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import cv2
import numpy as np
import yaml
from pydantic import TypeAdapter
from sklearn.datasets import load_sample_image

from dgunet.images import to_float
from pipeline.degradations import degrade
from pipeline.degradations.compose import Degradation
from pipeline.shards.format import Pair, write_shard

EXAMPLES = Path("infra/degradations.yaml")
RESULTS = Path("benchmarks/results/degradations.md")
TILE, ROUNDS, PAIRS_PER_ROUND = 256, 8, 12
PAIRS_PER_WORKER, TURNS = 24, 3
PNG_LEVEL = 1
PNG = "PNG encoding of the clean tile"
DECODE, ENCODE = "decoding: a JPEG photograph, per tile of it", "encoding: the pair into a shard"
REASONS = {  # why a degradation may take longer than PNG
    "camera_noise": "tone curve and gamma of 3 · 256² values, to linear light and back, twice",
    "camera_noise_bayer": "the same, and demosaicing twice",
    "camera_shake": "linear light and back around a kernel of up to 61²",
    "defocus": "linear light and back around a kernel of up to 13²",
    "gaussian_blur": "linear light and back",
    "gaussian_blur_anisotropic": "linear light and back around a kernel that does not separate",
    "heavy_rain": "thousands of streaks in four layers",
    "haze": "linear light and back",
    "night": "two steps: low light, then a camera's noise",
    "blur_and_noise": "two steps",
    "second_order": "two rounds of blur, resizing, noise and JPEG",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="number of rounds, of which the best counts")
    rounds = parser.parse_args().rounds
    cv2.setNumThreads(1)
    codes, examples = tile(), degradations()
    clean = to_float(codes)
    photo = cv2.imencode(".jpg", load_sample_image("china.jpg"))[1]
    tiles_per_photo = load_sample_image("china.jpg")[:, :, 0].size / TILE**2

    def png(seed: int) -> None:
        cv2.imencode(".png", codes, [cv2.IMWRITE_PNG_COMPRESSION, PNG_LEVEL])

    work: dict[str, Callable[[int], object]] = {
        PNG: png,
        DECODE: lambda seed: cv2.imdecode(photo, cv2.IMREAD_COLOR),
    }
    for name, degradation in examples.items():
        work[name] = lambda seed, degradation=degradation: degrade(clean, degradation, [seed])
    seconds = dict.fromkeys(work, math.inf) | {ENCODE: math.inf}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            for name, do in work.items():
                started = time.process_time()
                for seed in range(PAIRS_PER_ROUND):
                    do(seed)
                seconds[name] = min(seconds[name], (time.process_time() - started) / PAIRS_PER_ROUND)
            started = time.process_time()
            write_shard(
                Path(folder) / "0.tar", (Pair(str(n), codes, codes, {"seed": n}) for n in range(PAIRS_PER_ROUND))
            )
            seconds[ENCODE] = min(seconds[ENCODE], (time.process_time() - started) / PAIRS_PER_ROUND)
    seconds[DECODE] /= tiles_per_photo
    scaling = speed_of_two_workers(list(examples), min(TURNS, rounds))

    around = seconds[DECODE] + seconds[ENCODE]
    lines = [
        "# Degradations",
        "",
        f"`python -m benchmarks.degradations`, {platform.machine()}, numpy {np.__version__}, cv2 {cv2.__version__}.",
        f"Tiles of {TILE}² RGB, the same {PAIRS_PER_ROUND} seeds for all, processor time of one core, best of {rounds}",
        "alternating rounds. MB/s counts the 8 bit pixels of the clean tile. Share: of decoding, degrading and",
        "encoding together. Two workers: pairs per second of two processes as a multiple of one process, clock time.",
        "",
        "| degradation (infra/degradations.yaml) | ms per pair | pairs/s | MB/s | share | times PNG encoding "
        "| two workers |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name in (PNG, DECODE, ENCODE, *examples):
        each = seconds[name]
        share = f"{100 * each / (around + each):.0f} %" if name in examples else ""
        ratio = f"{scaling[name]:.2f}" if name in examples else ""
        lines.append(
            f"| {name} | {1e3 * each:.2f} | {1 / each:.0f} | {codes.nbytes / each / 1e6:.1f} | {share} "
            f"| {each / seconds[PNG]:.2f} | {ratio} |"
        )
    slow = [name for name in examples if seconds[name] > seconds[PNG]]
    lines += [
        "",
        "Slower than PNG encoding, with the reason:",
        "",
        *(f"- {name}: {REASONS.get(name, 'not known')}" for name in slow),
    ]
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def tile() -> np.ndarray:
    return np.ascontiguousarray(load_sample_image("china.jpg")[100 : 100 + TILE, 200 : 200 + TILE])


def degradations() -> dict[str, Degradation]:
    adapter: TypeAdapter[Degradation] = TypeAdapter(Degradation)
    return {name: adapter.validate_python(text) for name, text in yaml.safe_load(EXAMPLES.read_text()).items()}


def speed_of_two_workers(names: list[str], turns: int) -> dict[str, float]:
    """Return the pairs per second of two processes as a multiple of one process, by degradation."""
    ratios = {}
    with ProcessPoolExecutor(2, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        list(pool.map(make, [(name, 1) for name in names] * 2))  # so that all is imported
        for name in names:
            rates: dict[int, float] = {}
            for _ in range(turns):
                for workers in (1, 2):
                    started = time.perf_counter()
                    list(pool.map(make, [(name, PAIRS_PER_WORKER)] * workers))
                    rate = workers * PAIRS_PER_WORKER / (time.perf_counter() - started)
                    rates[workers] = max(rate, rates.get(workers, 0.0))
            ratios[name] = rates[2] / rates[1]
    return ratios


def make(work: tuple[str, int]) -> None:
    """Make a number of pairs of a degradation."""
    name, count = work
    clean, degradation = to_float(tile()), degradations()[name]
    for seed in range(count):
        degrade(clean, degradation, [seed])


if __name__ == "__main__":
    main()
