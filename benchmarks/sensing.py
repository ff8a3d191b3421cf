"""Compressive sensing against linear reconstruction on Set11, at the ratio and with the values of one section.

`python -m benchmarks.sensing --steps 200` trains the section's network on the photographs of data/manifest.jsonl and
writes benchmarks/results/sensing.md. Every linear row is Φ⁺y of another Φ, the image of least norm that explains the
measurements; that of the principal components of the training blocks is the best linear reconstruction that those
blocks know.
"""

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path
from statistics import fmean

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch

from dgunet.checkpoint import load_model
from dgunet.gradient import BLOCK_SIZE, SensingMatrix, lowest_frequencies
from dgunet.images import to_array, to_tensor
from dgunet.network import DGUNet, DGUNetConfig, pad
from pipeline import loader, loop, tiles, training
from pipeline.evaluation import Evaluate, evaluate
from pipeline.manifest import read_manifest
from pipeline.params import Synthesize, Train, load_section, read_params
from pipeline.protocol import Protocol
from pipeline.shards import Index, write_index, write_shard

RESULTS = Path("benchmarks/results/sensing.md")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sensing", description=__doc__)
    parser.add_argument("--task", default="sensing_25", help="a section of params.yaml")
    parser.add_argument("--steps", type=int, help="instead of the section's num_steps")
    parser.add_argument("--random", action="store_true", help="start with random orthonormal rows instead")
    given = parser.parse_args()
    torch.set_num_threads(1)
    made, judged = (
        load_section(f"{given.task}.synthesize", Synthesize),
        load_section(f"{given.task}.evaluate", Evaluate),
    )
    recipe = load_section(f"{given.task}.train", Train)
    steps = given.steps or recipe.num_steps
    recipe = recipe.model_copy(update={"num_steps": steps, "validate_every": max(1, steps // 4)})
    [benchmark] = judged.benchmarks
    if (missing := benchmark.absent()) is not None:
        raise SystemExit(f"there is no folder {missing}")
    images = list(benchmark.pairs(made.degradation, made.channels, seed=0))

    with tempfile.TemporaryDirectory() as folder:
        synthesize(made, read_params()[given.task]["synthesize"], Path(folder))
        network = initial(recipe, random=given.random)
        assert network.sensing is not None
        count = network.config.num_measurements
        rows = {
            "random orthonormal rows, Φ⁺y": linear(
                torch.nn.init.orthogonal_(torch.empty(count, BLOCK_SIZE**2)), images
            ),
            "lowest frequencies, Φ⁺y": linear(lowest_frequencies(count), images),
            "principal components of the training blocks, Φ⁺y": linear(principal(Path(folder), count), images),
        }
        started = time.process_time()
        trained = train(network, recipe, Path(folder))
        seconds = time.process_time() - started
    evaluation = evaluate(trained, images, judged.baseline, benchmark.protocol)
    assert trained.sensing is not None
    start = "random orthonormal rows" if given.random else "the lowest frequencies"
    rows[f"learned in {steps} steps from {start}, Φ⁺y"] = linear(trained.sensing.matrix, images)
    for number, stage in enumerate(evaluation.stages, 1):
        rows[f"the same, the network's estimate {number}"] = stage.psnr
    lines = [f"| {name} | {psnr:.2f} |" for name, psnr in rows.items()]
    text = (
        f"# {benchmark.name} at {recipe.network.sensing_ratio_percent:g} %, mean PSNR in dB\n\n"
        f"{given.task}, {steps} steps, {seconds:.0f} s of one core. {benchmark.protocol}\n\n"
        "| Φ and reconstruction | PSNR |\n|---|---|\n" + "\n".join(lines) + "\n"
    )
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(text, encoding="utf-8")
    print(text)


def synthesize(made: Synthesize, content: dict[str, object], out: Path) -> None:
    images = tiles.chosen(read_manifest(Path("data/manifest.jsonl")), made)
    for split in ("train", "val"):
        (out / split).mkdir()
        mine = [image for image in images if image.split == split]
        entries = [
            write_shard(out / split / f"{number:06d}.tar", tiles.pairs(shard, made, 1))
            for number, shard in enumerate(tiles.plan(mine, made))
        ]
        write_index(out / split, Index({**content, "seed": 1}, entries))


def initial(recipe: Train, *, random: bool) -> DGUNet:
    torch.manual_seed(1)
    network = DGUNet(DGUNetConfig(image_channels=1, **recipe.network.model_dump()))
    if random and network.sensing is not None:
        torch.nn.init.orthogonal_(network.sensing.matrix)
    return network


def train(network: DGUNet, recipe: Train, shards: Path) -> DGUNet:
    patches = loader.Patches(shards / "train", recipe.batch_size, recipe.patch_size, 1, recipe.mixup_alpha)

    def report(metrics: dict[str, float], folder: Path | None) -> None:
        assert folder is not None
        print(f"step {metrics['step']}: val {metrics['val_psnr']:.2f} dB", flush=True)
        shutil.copytree(folder / training.BEST, shards / "model", dirs_exist_ok=True)

    ports = loop.Ports(
        batches=lambda step: loader.batches(
            patches, rank=0, num_workers=1, first_step=step, num_steps=recipe.num_steps, processes=0, pin_memory=False
        ),
        validation=lambda: loader.pairs(shards / "val"),
        report=report,
    )
    card = {"task": "sensing", "provenance": {}}
    loop.fit(network, recipe, ports, device=torch.device("cpu"), resume=None, card=card)
    return load_model(shards / "model")


def principal(shards: Path, count: int) -> torch.Tensor:
    """The leading eigenvectors of the uncentred second moment of all blocks of the training tiles."""
    moment = np.zeros((BLOCK_SIZE**2, BLOCK_SIZE**2))
    for pair in loader.pairs(shards / "train"):
        height, width = (side // BLOCK_SIZE * BLOCK_SIZE for side in pair.clean.shape[:2])
        grid = pair.clean[:height, :width, 0].reshape(height // BLOCK_SIZE, BLOCK_SIZE, -1, BLOCK_SIZE)
        blocks = grid.transpose(0, 2, 1, 3).reshape(-1, BLOCK_SIZE**2).astype(np.float64)
        moment += blocks.T @ blocks
    return torch.from_numpy(np.linalg.eigh(moment)[1][:, ::-1][:, :count].T.astype(np.float32).copy())


@torch.inference_mode()
def linear(matrix: torch.Tensor, images: list[loader.LoadedPair]) -> float:
    sensing, inverse = SensingMatrix(len(matrix)), SensingMatrix(len(matrix))
    sensing.matrix.copy_(matrix)
    inverse.matrix.copy_(torch.linalg.pinv(matrix.double()).T)
    protocol = Protocol("luma", quantise=False, crop=None, border=0, self_ensemble=False)
    found = []
    for clean in (image.clean for image in images):
        image = inverse.adjoint(sensing.degrade(pad(to_tensor(clean), BLOCK_SIZE)))[
            ..., : clean.shape[0], : clean.shape[1]
        ]
        found.append(protocol.measure(to_array(image.clamp(0, 1)), clean).psnr)
    return fmean(found)


if __name__ == "__main__":
    main()
