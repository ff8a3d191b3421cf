"""Speed of the loader beside that of a data set of PNG files that decodes whole images; its share of a training step.

    python -m benchmarks.loader [--photos FOLDER] [--rounds 8]

Both read the same pairs of the task derain and cut patches of the same size. Their rounds alternate; the processor time
of the best round counts. Without --photos the photographs of data/manifest.jsonl are used, which `make repro` writes.
The result goes to benchmarks/results/loader.md.
"""

import argparse
import math
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import cv2
import numpy as np
import torch

from dgunet.images import read_photo, to_float, write_image
from dgunet.network import DGUNet, DGUNetConfig
from pipeline.config.params import load_task_section, merged_section, read_params
from pipeline.dataloader import dataset, loader
from pipeline.degradations import degrade
from pipeline.preparation.inspection import inspect_image
from pipeline.shards.format import Index, Pair, write_index, write_shard
from pipeline.sources.listing import Candidate, Folder, list_images, read_source_image
from pipeline.sources.manifest import Entry, read_manifest
from pipeline.synthesis import tiles
from pipeline.synthesis.settings import Synthesize
from pipeline.training.settings import Train
from pipeline.training.trainer import Trainer

RESULTS = Path(__file__).parent / "results" / "loader.md"
SAMPLES, STEPS = 64, 25
PUBLISHED = 384, 256, 16  # tile, patch and batch size of infra/recipes/derain.yaml


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", help="folder of photographs; default: those of data/manifest.jsonl")
    parser.add_argument("--rounds", type=int, default=8, help="number of rounds, of which the best counts")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    images = of_folder(args.photos) if args.photos else [i for i in manifest() if i.split == "train"]
    pixels = statistics.mean(image.height * image.width for image in images) / 1e6
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        patch = load_task_section("derain", "train", Train).patch_size
        write_pngs(images, place / "png")
        write_shards("derain", images, place / "derain")
        write_shards("denoise", images, place / "denoise")
        shards, pngs = samples_of_shards(place / "derain", patch), samples_of_pngs(place / "png", patch)
        speed = alternating({"shards": shards, "pngs": pngs}, args.rounds)
        cost, step, waiting = share_of_a_step(place / "denoise")
        fed = alternating({"fed": batches_of_recipe(place / "recipe")}, 2)["fed"] / PUBLISHED[2]
    ratio = speed["pngs"] / speed["shards"]
    report = [
        "# The loader",
        "",
        f"`python -m benchmarks.loader{photos_option(args.photos)}`, {platform.machine()}, "
        f"one core, processor time, best of {args.rounds} "
        f"alternating rounds of {SAMPLES} samples.",
        f"{len(images)} photographs of {pixels:.2f} megapixels on average; pairs of rain, patches of {patch}².",
        "",
        "| | ms per sample | samples/s per core |",
        "|---|---:|---:|",
        f"| PNG files: decode both whole images, crop | {1e3 * speed['pngs']:.2f} | {1 / speed['pngs']:.0f} |",
        f"| shards of tiles, `pipeline.dataloader.loader` | {1e3 * speed['shards']:.3f} | {1 / speed['shards']:.0f} |",
        f"| ratio | {ratio:.0f} × | |",
        "",
        "Beside a training step at the default of `denoise` (8 patches of 48², noise drawn for whole tiles of 128²),",
        f"medians of {STEPS} steps on one core:",
        "",
        "| | ms | of a step |",
        "|---|---:|---:|",
        f"| training step, processor time | {1e3 * step:.0f} | |",
        f"| making a batch, processor time | {1e3 * cost:.1f} | {100 * cost / step:.1f} % |",
        f"| waiting for a batch (made one ahead in a thread) | {1e3 * waiting:.2f} | {100 * waiting / step:.1f} % |",
    ]
    report += [
        "",
        f"Batches of the published deraining recipe ({PUBLISHED[2]} patches of {PUBLISHED[1]}² from tiles of "
        f"{PUBLISHED[0]}²): {1e3 * fed:.2f} ms per image,",
        f"{1 / fed:.0f} images/s per core. A GPU that trains on N images/s needs N / {1 / fed:.0f} cores to be fed;",
        f"the four processes it gets by default feed {4 / fed:.0f} images/s.",
    ]
    RESULTS.write_text("\n".join(report) + "\n")
    print("\n".join(report))


def photos_option(folder: str | None) -> str:
    """The option --photos as the report shows it, without the place of the folder DGUNET_DATA on this machine."""
    data = os.environ.get("DGUNET_DATA")
    return f" --photos {folder.replace(data, '$DGUNET_DATA') if data else folder}" if folder else ""


def manifest() -> list[Entry]:
    return tiles.select_images(
        read_manifest(Path("data/manifest.jsonl")), load_task_section("denoise", "synthesize", Synthesize)
    )


def of_folder(path: str) -> list[Entry]:
    entries = []
    for found in list_images(Folder(path=path)):
        if isinstance(found, Candidate):
            seen = inspect_image(found, max_pixels=10**8)
            size = {"height": seen.height, "width": seen.width}
            entries.append(
                Entry(uri=found.uri, sha256=seen.sha256, split="train", scene="", source=found.source, **size)
            )
    return entries


def write_pngs(images: list[Entry], folder: Path) -> None:
    degradation = load_task_section("derain", "synthesize", Synthesize).degradation
    for side in ("clean", "degraded"):
        (folder / side).mkdir(parents=True)
    for number, image in enumerate(images):
        clean = to_float(read_photo(read_source_image(image.uri)).pixels)
        write_image(folder / "clean" / f"{number}.png", clean)
        write_image(folder / "degraded" / f"{number}.png", np.clip(degrade(clean, degradation, [number]).image, 0, 1))


def write_shards(task: str, images: list[Entry], folder: Path) -> None:
    settings = load_task_section(task, "synthesize", Synthesize).model_copy(update={"copies": 1})
    folder.mkdir()
    entries = [
        write_shard(folder / f"{number:06d}.tar", tiles.make_pairs(plan, settings, 1))
        for number, plan in enumerate(tiles.plan_shards(images, settings))
    ]
    write_index(folder, Index({**merged_section(read_params(), task, "synthesize"), "seed": 1}, entries))


def samples_of_shards(folder: Path, patch: int) -> Iterator[object]:
    patches = dataset.PatchDataset(folder, batch_size=8, patch_size=patch, seed=1)
    for step in range(10**9):
        for slot in range(8):
            clean, degraded, _ = patches[step, slot]
            yield (
                torch.from_numpy(clean.transpose(2, 0, 1).copy()),
                torch.from_numpy(degraded.transpose(2, 0, 1).copy()),
            )


def samples_of_pngs(folder: Path, patch: int) -> Iterator[object]:
    names = sorted(path.name for path in (folder / "clean").iterdir())
    rng = np.random.default_rng(1)
    while True:
        name = names[rng.integers(len(names))]
        clean, degraded = (cv2.imread(str(folder / side / name))[:, :, ::-1] for side in ("clean", "degraded"))
        top, left = (int(rng.integers(side - patch + 1)) for side in clean.shape[:2])
        window, turns = np.s_[top : top + patch, left : left + patch], int(rng.integers(4))
        yield tuple(
            torch.from_numpy(np.rot90(to_float(image[window]), turns).transpose(2, 0, 1).copy())
            for image in (clean, degraded)
        )


def alternating(sides: dict[str, Iterator[object]], rounds: int) -> dict[str, float]:
    """Seconds of processor time per sample of each side; a first round, not counted, opens the files."""
    best = dict.fromkeys(sides, math.inf)
    for number in range(rounds + 1):
        for name, samples in sides.items():
            seconds = taken(lambda samples=samples: [next(samples) for _ in range(SAMPLES)])
            if number:
                best[name] = min(best[name], seconds / SAMPLES)
    return best


def taken(work: Callable[[], object], clock: Callable[[], float] = time.process_time) -> float:
    started = clock()
    work()
    return clock() - started


def batch(patches: dataset.PatchDataset, step: int) -> loader.Batch:
    return loader.collate([patches[step, slot] for slot in range(patches.order.batch_size)])


def batches_of_recipe(folder: Path) -> Iterator[object]:
    """Yield batches of the size of the published deraining recipe; random pixels, as content does not change speed."""
    rng, (tile, patch, size) = np.random.default_rng(1), PUBLISHED
    folder.mkdir()
    entries = []
    for number in range(8):
        images = rng.integers(0, 256, (2 * size, 2, tile, tile, 3), dtype=np.uint8)
        pairs = [Pair(f"{number}-{i}", clean, degraded, {}) for i, (clean, degraded) in enumerate(images)]
        entries.append(write_shard(folder / f"{number:06d}.tar", pairs))
    write_index(folder, Index({"online": False, "seed": 1}, tuple(entries)))
    patches = dataset.PatchDataset(folder, batch_size=size, patch_size=patch, seed=1)
    for step in range(10**9):
        yield batch(patches, step)


def share_of_a_step(folder: Path) -> tuple[float, float, float]:
    """Return processor seconds to make a batch and to take a step, and clock seconds that a step waits for a batch."""
    recipe = load_task_section("denoise", "train", Train)
    patches = dataset.PatchDataset(folder, recipe.batch_size, recipe.patch_size, seed=1)
    steps = {"rank": 0, "world_size": 1, "num_steps": 10**6, "num_loader_processes": 0, "pin_memory": False}
    training = Trainer(DGUNet.with_seed(DGUNetConfig(**recipe.network.model_dump()), 0), recipe, torch.device("cpu"))
    costs, took, waits = [], [], []
    for step in range(STEPS):
        costs.append(taken(partial(batch, patches, step)))
        took.append(taken(lambda step=step: training.step(batch(patches, step))) - costs[-1])
    batches = loader.batches(patches, first_step=STEPS, **steps)
    for _ in range(STEPS):
        got = []
        waits.append(taken(lambda got=got: got.append(next(batches)), time.perf_counter))
        training.step(got[0])
    return statistics.median(costs), statistics.median(took), statistics.median(waits)


if __name__ == "__main__":
    main()
