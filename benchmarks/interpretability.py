"""What the learned Φ and Φᵀ of small networks are, with and without `operator_loss`: per task, variant and seed.

    python -m benchmarks.interpretability [--tasks blur rain] [--variants published operators] [--seeds 1 2 3]

Trains networks of width 8 and 3 stages for 600 steps on patches of CBSD400/train, and measures them on 10 images of
CBSD68, 320×320 pixels. Needs both folders where DGUNET_DATA says (docs/datasets.md). Each row is written to
benchmarks/results/interpretability.jsonl as soon as it is measured; the same command continues an interrupted run. The
table in interpretability.md is written from all rows. One network takes some three minutes on one core.

Per stage: PSNR of Φ_k(clean) against y, beside that of the clean image itself; cosine between Φ_kᵀr and the transposed
Jacobian of Φ_k times r; ‖Φ_k x − y‖ in grey levels before and after the gradient step; PSNR of v_k and x_k. For the
whole network: PSNR of the restored image, and the same with all step sizes set to 0.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor
from tqdm import tqdm

from dgunet.images import MAX_GREY_LEVEL, read_image
from dgunet.metrics import psnr
from dgunet.network import DGUNet, DGUNetConfig
from dgunet.tensors import to_tensor
from pipeline.dataloader.loader import Batch
from pipeline.degradations import degrade
from pipeline.degradations.parsing import parse_degradation
from pipeline.runtime.environment import read_environment
from pipeline.training.settings import Train
from pipeline.training.trainer import Trainer

PROJECT = Path(__file__).parents[1]
DATA = Path(read_environment().data).absolute()
ROWS = PROJECT / "benchmarks" / "results" / "interpretability.jsonl"
TABLE = ROWS.with_suffix(".md")
VARIANTS = {"published": (0.0, 0.0), "degradation": (0.1, 0.0), "operators": (0.1, 0.02)}
NUM_CROPS, CROP, PATCH, BATCH, STEPS, TEST_SIDE = 240, 96, 48, 8, 600, 320
PARAMS = yaml.safe_load((PROJECT / "params.yaml").read_text())
DEGRADATIONS: dict[str, Any] = {
    "blur": {
        "kind": "sequence",
        "steps": [
            {"kind": "gaussian_blur", "sigma": [1.6, 1.6], "ratio": [1, 1], "angle": [0, 0], "highlight_gain": [1, 1]},
            {"kind": "gaussian_noise", "sigma": [2, 2], "per_channel": True},
        ],
    },
    "noise": {"kind": "gaussian_noise", "sigma": [25, 25], "per_channel": True},
    "rain": PARAMS["derain"]["synthesize"]["degradation"],
    "mixed": PARAMS["mixed"]["synthesize"]["degradation"],
}


def main() -> None:
    """Train and measure what has no row yet, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=DEGRADATIONS, default=list(DEGRADATIONS))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["published", "operators"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    args = parser.parse_args()
    for folder in ("CBSD68", "CBSD400"):
        if not (DATA / folder).is_dir():
            sys.exit(f"no images in {DATA / folder}: set DGUNET_DATA; docs/datasets.md says where to get them")
    torch.set_num_threads(1)
    wanted = [(task, variant, seed) for seed in args.seeds for task in args.tasks for variant in args.variants]
    known = {(row["task"], row["variant"], row["seed"]) for row in rows()}
    for task, variant, seed in tqdm([each for each in wanted if each not in known], disable=None):
        network = train(task, variant, seed)
        row = {"task": task, "variant": variant, "seed": seed, **measure(network, task)}
        with ROWS.open("a") as file:
            file.write(json.dumps(row) + "\n")
    TABLE.write_text(table())


def rows() -> list[dict[str, Any]]:
    """Return what was measured so far."""
    return [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []


def train(task: str, variant: str, seed: int) -> DGUNet:
    """Return the averaged network."""
    degradation_weight, adjoint_weight = VARIANTS[variant]
    recipe = Train.model_validate(
        {
            **PARAMS["defaults"]["train"],
            "loss": "charbonnier_edge" if task == "rain" else "charbonnier",
            "operator_loss": {"degradation": degradation_weight, "adjoint": adjoint_weight},
            "num_steps": STEPS,
            "batch_size": BATCH,
            "compute": {**PARAMS["defaults"]["train"]["compute"], "precision": "float32"},
        }
    )
    sizes = DGUNetConfig(width=8, growth=8, head_growth=8, num_stages=3, share_stages=False)
    trainer = Trainer(DGUNet.with_seed(sizes, seed), recipe, torch.device("cpu"))
    crops = list(training_pairs(task, seed))
    rng = np.random.default_rng(seed + 1000)
    for _ in range(STEPS):
        pairs = [patch(crops[rng.integers(len(crops))], rng) for _ in range(BATCH)]
        clean, degraded = (torch.from_numpy(np.stack(images)) for images in zip(*pairs, strict=True))
        trainer.step(Batch(clean, degraded, [""] * BATCH))
    return trainer.averaged.eval()


def training_pairs(task: str, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield pairs of 96×96 pixels from random places of random photographs."""
    degradation, rng = parse_degradation(DEGRADATIONS[task]), np.random.default_rng(seed)
    files = sorted((DATA / "CBSD400" / "train").glob("*.jpg"))
    for number in range(NUM_CROPS):
        photo = read_image(files[rng.integers(len(files))])
        top, left = (int(rng.integers(side - CROP)) for side in photo.shape[:2])
        clean = np.ascontiguousarray(photo[top : top + CROP, left : left + CROP])
        yield clean, degrade(clean, degradation, [seed, number]).image


def patch(pair: tuple[np.ndarray, np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    """Return a random patch of both images, rotated and flipped alike, C H W."""
    top, left, quarter, flip = rng.integers([CROP - PATCH, CROP - PATCH, 4, 2])
    cut = (image[top : top + PATCH, left : left + PATCH] for image in pair)
    turned = (np.rot90(image, quarter)[:, :: -1 if flip else 1] for image in cut)
    return [np.ascontiguousarray(image.transpose(2, 0, 1), np.float32) for image in turned]


@torch.no_grad()
def measure(network: DGUNet, task: str) -> dict[str, Any]:
    """Return the means over the test images; those of stages as lists."""
    without_steps = copy.deepcopy(network)
    for stage in without_steps.stages():
        stage.gradient.step_size.zero_()
    found = []
    for clean, degraded in test_pairs(task):
        estimates = network(degraded)
        stages = []
        for stage, before, after in zip(network.stages(), (degraded, *estimates[:-1]), estimates, strict=True):
            learned = stage.gradient.learned
            assert learned is not None
            residual = learned.degrade(before) - degraded
            adjoint, transposed = learned.adjoint(residual), learned.degrade.transposed(residual, before)
            stepped = before - stage.gradient.step_size * adjoint
            stages.append(
                {
                    "phi": decibels(learned.degrade(clean), degraded),
                    "cosine": float(torch.cosine_similarity(adjoint.flatten(), transposed.flatten(), dim=0)),
                    "residual": grey_levels(residual),
                    "residual_after": grey_levels(learned.degrade(stepped) - degraded),
                    "v": decibels(stepped, clean),
                    "x": decibels(after, clean),
                }
            )
        means = {name: [stage[name] for stage in stages] for name in stages[0]}
        means |= {"identity": [decibels(clean, degraded)], "restored": [decibels(estimates[-1], clean)]}
        found.append(means | {"without_steps": [decibels(without_steps(degraded)[-1], clean)]})
    return {name: np.mean([means[name] for means in found], axis=0).round(3).tolist() for name in found[0]}


def test_pairs(task: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield ten pairs, the same at every call."""
    degradation = parse_degradation(DEGRADATIONS[task])
    for number, file in enumerate(sorted((DATA / "CBSD68").glob("*.png"))[::7][:10]):
        clean = np.ascontiguousarray(read_image(file)[:TEST_SIDE, :TEST_SIDE])
        yield to_tensor(clean), to_tensor(degrade(clean, degradation, [99, number]).image)


def decibels(image: Tensor, other: Tensor) -> float:
    """PSNR of an image, clipped as a file would be."""
    return float(psnr(image.clamp(0, 1), other))


def grey_levels(residual: Tensor) -> float:
    """Root mean square in grey levels."""
    return float(MAX_GREY_LEVEL * residual.square().mean().sqrt())


def table() -> str:
    """Return the results as Markdown: means over seeds."""
    lines = [
        "# What the learned Φ and Φᵀ are\n",
        "Written by `python -m benchmarks.interpretability`; its docstring says what is measured. Means over the "
        "seeds; per stage 1 / 2 / 3. PSNR in dB, residuals in grey levels before → after the gradient step.\n",
        "| task | variant | seeds | Φ(clean) against y | clean against y | cosine of Φᵀ | residual | v | restored "
        "| steps 0 |",
        "|---|---|---:|---|---:|---|---|---|---:|---:|",
    ]
    measured = rows()
    for task in DEGRADATIONS:
        for variant in VARIANTS:
            same = [row for row in measured if (row["task"], row["variant"]) == (task, variant)]
            if not same:
                continue
            mean = {
                key: np.mean([row[key] for row in same], axis=0) for key in same[0] if isinstance(same[0][key], list)
            }
            stages = {
                key: " / ".join(f"{value:.{2 if key == 'cosine' else 1}f}" for value in mean[key]) for key in mean
            }
            residual = " / ".join(
                f"{before:.1f} → {after:.1f}"
                for before, after in zip(mean["residual"], mean["residual_after"], strict=True)
            )
            lines.append(
                f"| {task} | {variant} | {len(same)} | {stages['phi']} | {stages['identity']} | {stages['cosine']} | "
                f"{residual} | {stages['v']} | {mean['restored'][0]:.2f} | {mean['without_steps'][0]:.2f} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
