"""How fast each degradation is, on one core, beside the PNG encoding that a stored pair would cost.

`python -m benchmarks.degradations` writes benchmarks/results/degradations.md. Times are processor time, rounds of all
degradations alternate, and each one's best round counts, so that a neighbour's load falls on all alike.
"""

import math
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import cv2
import numpy as np
import yaml
from pydantic import TypeAdapter
from sklearn.datasets import load_sample_image

from pipeline.degradations import Degradation, degrade

EXAMPLES = Path("infra/degradations.yaml")
RESULTS = Path("benchmarks/results/degradations.md")
TILE, ROUNDS, PAIRS_PER_ROUND = 256, 8, 12
PNG_LEVEL = 1


def main() -> None:
    cv2.setNumThreads(1)
    photo = load_sample_image("china.jpg")
    codes = np.ascontiguousarray(photo[100 : 100 + TILE, 200 : 200 + TILE])
    clean = codes.astype(np.float32) / np.float32(255)
    adapter: TypeAdapter[Degradation] = TypeAdapter(Degradation)
    examples = {name: adapter.validate_python(text) for name, text in yaml.safe_load(EXAMPLES.read_text()).items()}

    def png(seed: int) -> None:
        cv2.imencode(".png", codes, [cv2.IMWRITE_PNG_COMPRESSION, PNG_LEVEL])

    work: dict[str, Callable[[int], object]] = {"PNG encoding of the clean tile": png}
    for name, degradation in examples.items():
        work[name] = lambda seed, degradation=degradation: degrade(clean, degradation, [seed])
    seconds = dict.fromkeys(work, math.inf)
    for _ in range(ROUNDS):
        for name, do in work.items():
            started = time.process_time()
            for seed in range(PAIRS_PER_ROUND):
                do(seed)
            seconds[name] = min(seconds[name], (time.process_time() - started) / PAIRS_PER_ROUND)

    reference = seconds["PNG encoding of the clean tile"]
    lines = [
        "# Degradations, one core",
        "",
        f"`python -m benchmarks.degradations`, {platform.machine()}, numpy {np.__version__}, cv2 {cv2.__version__}.",
        f"Tiles of {TILE}² RGB, the same {PAIRS_PER_ROUND} seeds for all, processor time, best of {ROUNDS} alternating",
        "rounds. MB/s counts the 8 bit pixels of the clean tile. The last column is a ratio within this run.",
        "",
        "| degradation (infra/degradations.yaml) | ms per pair | pairs/s | MB/s | times PNG encoding |",
        "|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {name} | {1e3 * each:.2f} | {1 / each:.0f} | {codes.nbytes / each / 1e6:.1f} | {each / reference:.2f} |"
        for name, each in seconds.items()
    ]
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
