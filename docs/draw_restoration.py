"""Draws docs/restoration.jpg, the picture of the README: `python docs/draw_restoration.py`, after `make repro`.

Rows: Gaussian noise of σ 25, and the example `light_rain` of infra/degradations.yaml. Columns: the degraded photograph,
the estimate after each stage of the trained network, the clean photograph. It is `chelsea` of scikit-image (Stefan van
der Walt, CC0 1.0), which the default split puts into test.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import yaml
from skimage.data import chelsea

PROJECT = Path(__file__).parents[1]
sys.path.insert(0, str(PROJECT))

import dgunet  # noqa: E402
from dgunet.images import to_float  # noqa: E402
from dgunet.metrics import psnr  # noqa: E402
from dgunet.tensors import to_array, to_tensor  # noqa: E402
from pipeline.degradations import degrade  # noqa: E402
from pipeline.degradations.parsing import parse_degradation  # noqa: E402

SEED = 4  # rain of average strength: from 23 to 33 dB for seeds 1 to 8
TOP, LEFT, SIZE = 34, 96, 224  # the face


def main() -> None:
    """Restore, draw, and print the PSNR of each picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=PROJECT / "models", help="folder with denoise/ and derain/")
    models = parser.parse_args().models
    examples = yaml.safe_load((PROJECT / "infra" / "degradations.yaml").read_text(encoding="utf-8"))
    noise = {"kind": "gaussian_noise", "sigma": [25, 25], "per_channel": True}
    clean = to_float(chelsea())
    rows = [
        restore(models / task, clean, text) for task, text in (("denoise", noise), ("derain", examples["light_rain"]))
    ]
    figure, grid = plt.subplots(len(rows), len(rows[0]), figsize=(11, 4.9))
    for axes, (name, image) in zip(grid.flat, [cell for row in rows for cell in row], strict=True):
        quality = psnr(to_tensor(image.clip(0, 1)), to_tensor(clean)).item() if image is not clean else None
        label = name if quality is None else f"{name}: {quality:.1f} dB"
        print(label)
        axes.imshow(image.clip(0, 1)[TOP : TOP + SIZE, LEFT : LEFT + SIZE])
        axes.set_title(label, fontsize=9)
        axes.axis("off")
    figure.tight_layout(pad=0.4, h_pad=1.2)
    figure.savefig(PROJECT / "docs" / "restoration.jpg", dpi=100, pil_kwargs={"quality": 88})


def restore(folder: Path, clean: np.ndarray, degradation: dict[str, object]) -> list[tuple[str, np.ndarray]]:
    """Return the names and the images of one row."""
    degraded = degrade(clean, parse_degradation(degradation), [SEED]).image
    model = dgunet.load_model(folder)
    with torch.inference_mode():
        estimates = [to_array(estimate) for estimate in model(to_tensor(degraded))]
    stages = [(f"stage {number}", estimate) for number, estimate in enumerate(estimates, 1)]
    return [("noise" if "denoise" in folder.name else "rain", degraded), *stages, ("clean", clean)]


if __name__ == "__main__":
    main()
