"""PSNR of the default denoiser on CBSD68 (σ 25, noise neither clipped nor quantised), or of one trained on CBSD400.

    python -m benchmarks.denoise --model models/denoise     measures the model that `make repro` trained
    python -m benchmarks.denoise --steps 10000              trains the default recipe for σ 25 on CBSD400, then measures

Needs the folder CBSD68, and CBSD400 for --steps, where DGUNET_DATA says; docs/datasets.md says where to get them.
Adds a line to benchmarks/results/denoise.md. Published: CBM3D 30.71 dB, DnCNN 31.24 dB, Restormer 31.75 dB.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import yaml

from benchmarks.speedrun import run_stage
from dgunet.checkpoint import load_model, read_card
from dgunet.images import MAX_GREY_LEVEL, read_image
from dgunet.metrics import psnr
from dgunet.network import DGUNet
from dgunet.tensors import to_tensor
from pipeline.runtime.environment import read_environment

PROJECT = Path(__file__).parents[1]
DATA = Path(read_environment().data).absolute()
SIGMA = 25.0
RESULT = PROJECT / "benchmarks" / "results" / "denoise.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", type=Path, help="model folder to measure")
    what.add_argument("--steps", type=int, help="number of steps to train the default recipe on CBSD400 first")
    args = parser.parse_args()
    for folder in ("CBSD68",) if args.model else ("CBSD68", "CBSD400"):
        if not (DATA / folder).is_dir():
            sys.exit(f"no images in {DATA / folder}: set DGUNET_DATA; docs/datasets.md says where to get them")
    with tempfile.TemporaryDirectory() as work_folder:
        started = time.monotonic()
        model = args.model or train(Path(work_folder), args.steps)
        minutes = (time.monotonic() - started) / 60
        degraded, restored = mean_psnr(load_model(model))
        val = read_card(model)["provenance"]["metrics"]["val_psnr"]
        trained = f"{args.steps} steps on CBSD400, {minutes:.1f} minutes" if args.steps else f"{model}"
        line = f"| {trained} | {val:.2f} | {degraded:.2f} | {restored:.2f} |"
    print(line)
    if not RESULT.exists():
        head = "# The default denoiser on CBSD68, colour, σ 25, mean PSNR in dB\n\n"
        RESULT.write_text(head + "| trained | own val split | noisy | restored |\n|---|---:|---:|---:|\n")
    with RESULT.open("a") as file:
        file.write(line + "\n")


def train(folder: Path, steps: int) -> Path:
    """Run prepare, synthesize and train; images, σ, splits, steps and averaging are not those of params.yaml."""
    params = yaml.safe_load((PROJECT / "params.yaml").read_text())
    params["tasks"] = ["denoise"]
    params["prepare"]["sources"] = [
        {"kind": "folder", "path": str(DATA / "CBSD400" / name)} for name in ("train", "test")
    ]
    params["prepare"]["split"] = {"val": 0.03, "test": 0.0}
    params["denoise"]["synthesize"]["degradation"]["sigma"] = [25, 25]  # as the published numbers beside it
    params["denoise"]["train"] |= {"num_steps": steps, "validate_every": max(1, steps // 12), "average_decay": 0.999}
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    environment = os.environ | {
        "PYTHONPATH": str(PROJECT),
        "DGUNET_STORAGE": str(folder / "runs"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
    }
    for stage in (
        "prepare --manifest manifest.jsonl --report report.json --thumbnails thumbnails.npz",
        "synthesize --task denoise --manifest manifest.jsonl --out shards",
        "train --task denoise --shards shards --model model --curve train.csv",
    ):
        name, *arguments = stage.split()
        command = [sys.executable, "-m", f"pipeline.{name}", *arguments]
        run_stage(command, folder, environment)
    return folder / "model"


@torch.inference_mode()
def mean_psnr(network: DGUNet) -> tuple[float, float]:
    """Return the mean PSNR in dB of noisy and restored images; the seed of an image's noise is its index."""
    degraded, restored = [], []
    for number, path in enumerate(sorted((DATA / "CBSD68").glob("*.png"))):
        clean = to_tensor(read_image(path))
        noise = np.random.default_rng(number).standard_normal(clean.shape, dtype=np.float32) * np.float32(
            SIGMA / MAX_GREY_LEVEL
        )
        noisy = clean + torch.from_numpy(noise)
        degraded.append(float(psnr(noisy, clean)))
        restored.append(float(psnr(network(noisy)[-1].clamp(0, 1), clean)))
    return float(np.mean(degraded)), float(np.mean(restored))


if __name__ == "__main__":
    main()
