"""What `dgunet restore --stages k` and `--self-ensemble` cost and give: CPU time against PSNR, stage by stage.

    python -m benchmarks.stages --train 400 --model models/five_stages     trains it first
    python -m benchmarks.stages --model models/five_stages                 only measures

Trains the default denoise network, but with five stages, for noise of σ 25 on patches of CBSD400/train. Measures on ten
images of CBSD68, 192×192 pixels, σ 25, each restored by `dgunet.restore` on one thread. Needs both folders where
DGUNET_DATA says (docs/datasets.md). Writes benchmarks/results/stages.md.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from itertools import product
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import dgunet
from benchmarks.interpretability import DATA, PARAMS, decibels, patch, test_pairs, training_pairs
from benchmarks.runtimes import hardware
from dgunet.checkpoint import load_model, read_card, save_model
from dgunet.network import DGUNet, DGUNetConfig
from dgunet.tensors import to_array, to_tensor
from pipeline.dataloader.loader import Batch
from pipeline.training.settings import Train
from pipeline.training.trainer import Trainer

RESULTS = Path(__file__).parent / "results" / "stages.md"
NUM_STAGES, SIDE, SEED = 5, 192, 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path, help="model folder, written with --train")
    parser.add_argument("--train", type=int, metavar="STEPS", help="train this many steps first")
    args = parser.parse_args()
    for folder in ("CBSD68", "CBSD400"):
        if not (DATA / folder).is_dir():
            sys.exit(f"no images in {DATA / folder}: set DGUNET_DATA; docs/datasets.md says where to get them")
    torch.set_num_threads(1)
    if args.train:
        start = time.process_time()
        model = train(args.train)
        trained = f"{args.train} steps on CBSD400, {(time.process_time() - start) / 60:.1f} minutes of CPU time"
        save_model(model, args.model, {"task": "denoise", "provenance": {"trained": trained}})
    RESULTS.write_text(table(args.model), encoding="utf-8")
    print(RESULTS.read_text(encoding="utf-8"))


def train(num_steps: int) -> DGUNet:
    """Return the averaged network."""
    section = {**PARAMS["defaults"]["train"], **PARAMS["denoise"]["train"], "num_steps": num_steps}
    recipe = Train.model_validate(section | {"network": section["network"] | {"num_stages": NUM_STAGES}})
    sizes = DGUNetConfig(**recipe.network.model_dump())
    trainer = Trainer(DGUNet.with_seed(sizes, SEED), recipe, torch.device("cpu"))
    crops, rng = list(training_pairs("noise", SEED)), np.random.default_rng(SEED)
    for _ in tqdm(range(num_steps), disable=None):
        pairs = [patch(crops[rng.integers(len(crops))], rng) for _ in range(recipe.batch_size)]
        clean, degraded = (torch.from_numpy(np.stack(images)) for images in zip(*pairs, strict=True))
        trainer.step(Batch(clean, degraded, [""] * recipe.batch_size))
    return trainer.averaged.eval()


def table(folder: Path) -> str:
    """Return the results as Markdown."""
    model, card = load_model(folder), read_card(folder)
    stages = range(1, model.config.num_stages + 1)
    options = list(product(stages, (False, True)))
    psnrs: dict[tuple[int, bool], list[float]] = {option: [] for option in options}
    seconds: dict[tuple[int, bool], list[float]] = {option: [] for option in options}
    pairs = [
        tuple(np.ascontiguousarray(to_array(image)[:SIDE, :SIDE]) for image in pair) for pair in test_pairs("noise")
    ]
    dgunet.restore(model, pairs[0][1], statistics="whole")  # the first run of a process takes longer
    for clean, degraded in tqdm(pairs, disable=None):
        for count, ensemble in options:
            start = time.process_time()
            restored = dgunet.restore(model, degraded, num_stages=count, self_ensemble=ensemble, statistics="whole")
            seconds[count, ensemble].append(time.process_time() - start)
            psnrs[count, ensemble].append(decibels(to_tensor(restored), to_tensor(clean)))
    whole = statistics.median(seconds[model.config.num_stages, False])
    noisy = np.mean([decibels(to_tensor(degraded), to_tensor(clean)) for clean, degraded in pairs])
    lines = [
        "# Stages and self-ensemble: CPU time against PSNR",
        "",
        f"Written by `python -m benchmarks.stages`; its docstring says what is measured. {hardware()}; one thread; "
        f"torch {torch.__version__}. The model: {model.config.num_stages} stages of width {model.config.width}, "
        f"{card['provenance']['trained']}. Degraded: {noisy:.2f} dB. Time: median over the images, all stages = 1.",
        "",
        "| stages | time | PSNR | time, self-ensemble | PSNR, self-ensemble |",
        "|---:|---:|---:|---:|---:|",
    ]
    for count in stages:
        cells = [
            f"{statistics.median(seconds[count, ensemble]) / whole:.2f} | {np.mean(psnrs[count, ensemble]):.2f} dB"
            for ensemble in (False, True)
        ]
        lines.append(f"| {count} | {' | '.join(cells)} |")
    megapixels = SIDE * SIDE / 1e6
    lines += ["", f"All stages: {whole / megapixels:.1f} s of CPU time a megapixel."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
