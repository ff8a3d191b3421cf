"""What a training on the mixture learns of each degradation: loss and optimizer side by side, during training.

    python -m benchmarks.mixture [--recipes charbonnier_edge/adamw psnr/muon]

Trains the task `mixed` of params.yaml on bsds500 (one degraded version of each tile) with each recipe, and measures the
averaged network on the val split four times on the way. Writes benchmarks/results/mixture.md: mean PSNR in dB for each
kind of degradation, beside that of the degraded images. Shards are made in .cache/mixture. A recipe takes some five
minutes on one core; recipes that are in mixture.jsonl are not trained again, rows made at another commit included.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.speedrun import INTERRUPTED, STAGES, run_stages, trial_params
from benchmarks.tasks import training_operations
from dgunet.metrics import psnr
from dgunet.network import DGUNet, DGUNetConfig
from dgunet.tensors import to_tensor
from pipeline.config.params import merged_section, read_params, validated
from pipeline.dataloader import dataset, loader, pairs
from pipeline.runtime.entry_point import run_command
from pipeline.runtime.files import write_atomically
from pipeline.runtime.provenance import commit, processor
from pipeline.training.settings import Train
from pipeline.training.trainer import Trainer

PROJECT = Path(__file__).parents[1]
ROWS = PROJECT / "benchmarks" / "results" / "mixture.jsonl"
FOLDER = PROJECT / ".cache" / "mixture"
# Loss / optimizer -> changes of the defaults. On `denoise`, Muon was better with a rate of 0.008 than with 0.002.
RECIPES = {
    f"{loss}/{optimizer}": {"loss": loss, "optimizer": optimizer, "learning_rate": rate}
    for loss in ("charbonnier_edge", "psnr")
    for optimizer, rate in (("adamw", 0.002), ("muon", 0.008))
}
KINDS = ("camera_shake", "haze", "low_light", "rain_streaks")  # all other kinds are counted as `file`
NUM_MEASUREMENTS = 4


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and measure what has no row yet, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    args = parser.parse_args(arguments)
    params = trial_params(read_params(PROJECT / "params.yaml"), "mixed", "bsds500", "Rain100L", ["synthesize.copies=1"])
    known = {row["recipe"] for row in rows()}
    if missing := [name for name in args.recipes if name not in known]:
        make_shards(params)
    torch.set_num_threads(1)
    for name in missing:
        lines = [json.dumps(row) + "\n" for row in train(name, params)]  # all, or none after an interruption
        with ROWS.open("a", encoding="utf-8") as file:
            file.writelines(lines)
    write_atomically(ROWS.with_suffix(".md"), table(rows()))


def make_shards(params: Mapping[str, Any]) -> None:
    """Prepare the photographs and make the shards in FOLDER. Raises ValueError if a stage fails, which says why."""
    try:
        run_stages(STAGES[:2], params, "mixed", FOLDER)
    except subprocess.CalledProcessError as error:
        if error.returncode in INTERRUPTED:
            raise KeyboardInterrupt from error
        raise ValueError(f"{error.cmd[2]} failed; its message is above") from error


def rows() -> list[dict[str, Any]]:
    """Return what was measured so far."""
    return [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()] if ROWS.exists() else []


def train(name: str, params: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Train with a recipe, and yield a row for each measurement."""
    section = merged_section(params, "mixed", "train") | RECIPES[name]
    recipe = validated(section | {"validate_every": section["num_steps"] // NUM_MEASUREMENTS}, Train)
    config = DGUNetConfig(image_channels=3, **recipe.network.model_dump())
    trainer = Trainer(DGUNet.with_seed(config, params["seed"]), recipe, torch.device("cpu"))
    patches = dataset.PatchDataset(FOLDER / "shards/train", recipe.batch_size, recipe.patch_size, params["seed"])
    batches = loader.batches(
        patches, rank=0, world_size=1, first_step=0, num_steps=recipe.num_steps, num_loader_processes=0,
        pin_memory=False,
    )  # fmt: skip
    per_step = training_operations({"config": vars(config)}, recipe.model_copy(update={"num_steps": 1}))
    for step, batch in enumerate(tqdm(batches, desc=name, total=recipe.num_steps, disable=None), 1):
        trainer.step(batch)
        if step % recipe.validate_every == 0:
            yield {
                "recipe": name,
                "step": step,
                "tflop": round(step * per_step, 2),
                "psnr": measure(trainer.averaged.eval()),
                "commit": commit(),
                "hardware": processor(),
            }


@torch.no_grad()
def measure(network: DGUNet) -> dict[str, tuple[int, float, float]]:
    """Return by kind of degradation: number of pairs, mean PSNR of the degraded and of the restored images."""
    scores: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for pair in pairs.pairs(FOLDER / "shards/val"):
        clean, degraded = to_tensor(pair.clean), to_tensor(pair.degraded)
        restored = network(degraded)[-1].clamp(0, 1)
        score = float(psnr(degraded, clean)), float(psnr(restored, clean))
        for kind in (kind_of(pair.record["degradation"]), "all"):
            scores[kind].append(score)
    means = {kind: torch.tensor(values, dtype=torch.float64).mean(0).tolist() for kind, values in scores.items()}
    return {kind: (len(scores[kind]), round(means[kind][0], 2), round(means[kind][1], 2)) for kind in sorted(scores)}


def kind_of(record: Mapping[str, Any]) -> str:
    """Return the kind of a sampled degradation: one of KINDS, or `file` for all others."""
    first = record["steps"][0] if "steps" in record else record
    return first["kind"] if first["kind"] in KINDS else "file"


def table(measured: Sequence[Mapping[str, Any]]) -> str:
    """Return the table as Markdown."""
    first = measured[0]["psnr"]
    degraded = [f"{first[kind][1]:.2f}" for kind in first]
    lines = [
        "# The mixture, by degradation",
        "",
        "Written by `python -m benchmarks.mixture`, whose docstring says how.",
        "Mean PSNR in dB on the val split; in brackets the number of pairs.",
        "",
        f"| loss / optimizer | TFLOP | step | {' | '.join(f'{kind} ({first[kind][0]})' for kind in first)} |",
        f"|---|---:|---:|{'---:|' * len(first)}",
        f"| the degraded images | | | {' | '.join(degraded)} |",
    ]
    for row in sorted(measured, key=lambda row: (list(RECIPES).index(row["recipe"]), row["step"])):
        restored = [f"{row['psnr'][kind][2]:.2f}" for kind in first]
        lines.append(f"| {row['recipe']} | {row['tflop']:.1f} | {row['step']} | {' | '.join(restored)} |")
    at = sorted({(row["commit"], row["hardware"]) for row in measured})
    return "\n".join([*lines, "", *(f"Measured at commit {one} on {other}." for one, other in at), ""])


if __name__ == "__main__":
    run_command(main)
