"""The default denoiser on CBSD68 (σ 25, noise neither clipped nor quantised), as it is or trained longer on CBSD400.

    python -m benchmarks.denoise --model models/denoise            what `make repro` left, on CBSD68
    python -m benchmarks.denoise --steps 10000                     first train it that long on CBSD400, for σ 25 alone

Needs ../shared/data beside the checkout. Published: CBM3D 30.71 dB, DnCNN 31.24 dB, Restormer 31.75 dB.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import yaml

from dgunet.checkpoint import load_model, read_card
from dgunet.images import MAX_GREY_LEVEL, read_image
from dgunet.metrics import psnr
from dgunet.network import DGUNet
from dgunet.tensors import to_tensor

PROJECT = Path(__file__).parents[1]
DATA = PROJECT.parent / "shared" / "data"
SIGMA = 25.0
RESULT = PROJECT / "benchmarks" / "results" / "denoise.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="model folder to measure")
    parser.add_argument("--steps", type=int, help="train the default recipe so many steps on CBSD400 first")
    given = parser.parse_args()
    if not DATA.is_dir():
        sys.exit(f"skipped: needs {DATA}")
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        model = given.model or trained(Path(folder), given.steps)
        minutes = (time.monotonic() - started) / 60
        degraded, restored = measured(load_model(model))
        val = read_card(model)["provenance"]["metrics"]["val_psnr"]
        what = f"{given.steps} steps on CBSD400, {minutes:.1f} minutes" if given.steps else f"{model}"
        line = f"| {what} | {val:.2f} | {degraded:.2f} | {restored:.2f} |"
    print(line)
    if not RESULT.exists():
        head = "# The default denoiser on CBSD68, colour, σ 25, mean PSNR in dB\n\n"
        RESULT.write_text(head + "| trained | own val split | noisy | restored |\n|---|---:|---:|---:|\n")
    with RESULT.open("a") as file:
        file.write(line + "\n")


def trained(folder: Path, steps: int) -> Path:
    """Run the doors in a folder of their own, with the committed recipe but for sources and length."""
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
    for run_command in (
        "prepare --manifest manifest.jsonl --report report.json",
        "synthesize --task denoise --manifest manifest.jsonl --out shards",
        "train --task denoise --shards shards --model model --curve train.csv",
    ):
        name, *arguments = run_command.split()
        command = [sys.executable, "-m", f"pipeline.{name}", *arguments]
        subprocess.run(command, cwd=folder, env=environment, check=True)
    return folder / "model"


@torch.inference_mode()
def measured(network: DGUNet) -> tuple[float, float]:
    """Mean PSNR of noisy and restored; the noise of an image depends on its place in the list alone."""
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
