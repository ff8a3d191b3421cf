"""Trains one small network several times and draws docs/reproducibility.png: `python docs/draw_reproducibility.py`.

The runs differ in the number of workers, and in what is killed: nothing, a worker, or the driver with all of its
processes. Every step is validated, so that the training curve holds the loss of each step. Takes some minutes on two
cores. Works in a temporary copy of the tracked files; prints what it measured.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import psutil
import torch
import yaml

PROJECT = Path(__file__).parents[1]
PICTURE = PROJECT / "docs" / "reproducibility.png"
NUM_STEPS = 40
TRAIN: dict[str, Any] = {
    "network": {"width": 8, "growth": 4, "head_growth": 4, "num_stages": 3},
    "patch_size": 32,
    "batch_size": 8,
    "num_steps": NUM_STEPS,
    "warmup_steps": 5,
    "validate_every": 1,
    "compute": {"precision": "float32"},
}
SYNTHESIZE = {"tile_size": 64, "stride": 96, "held_out_tile_size": 128, "tiles_per_shard": 16}
WORKER = "ray::RayTrainWorker"
Kill = Callable[["subprocess.Popen[bytes]", Path], None]


def main() -> None:
    """Train, compare, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=NUM_STEPS, help="steps of each run")
    parser.add_argument("--out", type=Path, default=PICTURE, help="picture to write")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkout = Path(folder)
        prepare(checkout, arguments.steps)
        runs = {
            "1 worker": train(checkout, 1),
            "1 worker, killed at two steps": train(checkout, 1, kill_twice(arguments.steps)),
            "2 workers": train(checkout, 2),
            "4 workers": train(checkout, 4),
            "2 workers, one killed": train(checkout, 2, kill_worker_after(arguments.steps // 2)),
        }
    for name, (losses, model) in runs.items():
        assert len(losses) == arguments.steps, (name, len(losses))
        for other in ("1 worker", "2 workers"):
            difference = max(abs(a - b) / b for a, b in zip(losses, runs[other][0], strict=True))
            same = "the same" if model == runs[other][1] else "other"
            print(f"{name} against {other}: losses differ by at most {difference:.1e} of their value, {same} weights")
    draw({name: losses for name, (losses, _) in runs.items()}, arguments.out)


def prepare(checkout: Path, num_steps: int) -> None:
    """Copy the tracked files, make the values small, and build the shards."""
    listed = subprocess.run(["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True, check=True)
    for name in listed.stdout.splitlines():
        if (PROJECT / name).is_file():
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT / name, checkout / name)
    path = checkout / "params.yaml"
    params = yaml.safe_load(path.read_text(encoding="utf-8"))
    task = params["denoise"]
    task["synthesize"] |= SYNTHESIZE
    small = TRAIN | {"num_steps": num_steps}
    task["train"] |= {name: value for name, value in small.items() if not isinstance(value, dict)}
    for name in ("network", "compute"):  # those values that are not changed stay as they are
        before = params.get("defaults", {}).get("train", {}).get(name, {}) | task["train"].get(name, {})
        task["train"][name] = before | small[name]
    path.write_text(yaml.safe_dump(params | {"tasks": ["denoise"]}, allow_unicode=True), encoding="utf-8")
    prepare = "--manifest data/manifest.jsonl --report reports/prepare.json --thumbnails data/thumbnails.npz"
    python(checkout, "pipeline.prepare", *prepare.split())
    python(
        checkout,
        "pipeline.synthesize",
        "--task",
        "denoise",
        "--manifest",
        "data/manifest.jsonl",
        "--out",
        "data/shards",
    )


def python(checkout: Path, module: str, *arguments: str) -> None:
    """Run a command of the pipeline to its end."""
    with started(checkout, module, *arguments, workers=1) as process:
        assert process.wait() == 0, module


@contextmanager
def started(checkout: Path, module: str, *arguments: str, workers: int) -> Iterator[subprocess.Popen[bytes]]:
    """A command of the pipeline that runs in a process group of its own."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("DGUNET_", "MLFLOW_"))}
    environment |= {
        "DGUNET_WORKERS": str(workers),
        "DGUNET_CPUS_PER_WORKER": "0.5",  # four workers on two cores
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(checkout),
    }
    command = [sys.executable, "-m", module, *arguments]
    with subprocess.Popen(command, cwd=checkout, env=environment, start_new_session=True) as process:
        yield process


def train(checkout: Path, workers: int, kill: Kill | None = None) -> tuple[list[float], str]:
    """Train from the start, `kill` may end processes; return the loss of each step and the digest of the weights."""
    for folder in (".cache/runs", "models", "reports/denoise"):
        shutil.rmtree(checkout / folder, ignore_errors=True)
    outputs = ("--model", "models/denoise", "--curve", "reports/denoise/train.csv")
    arguments = ("--task", "denoise", "--shards", "data/shards", *outputs)
    with started(checkout, "pipeline.train", *arguments, workers=workers) as process:
        if kill is not None:
            kill(process, checkout)
        status = process.wait()
    if status == -signal.SIGKILL:  # of the driver: the same command goes on with the run
        with started(checkout, "pipeline.train", *arguments, workers=workers) as process:
            status = process.wait()
    assert status == 0, status
    with (checkout / "reports" / "denoise" / "train.csv").open(encoding="utf-8") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    model = (checkout / "models" / "denoise" / "model.safetensors").read_bytes()
    return losses, hashlib.sha256(model).hexdigest()


def kill_worker_after(step: int) -> Kill:
    """Return what sends SIGKILL to a worker after `step`; Ray Train starts the group of workers again."""

    def kill(process: subprocess.Popen[bytes], checkout: Path) -> None:
        wait_for_checkpoint(process, checkout, step)
        workers = [one for one in psutil.Process(process.pid).children(recursive=True) if WORKER in title(one)]
        assert workers, "no worker is running"
        workers[0].kill()
        print(f"killed a worker after step {step}", flush=True)

    return kill


def kill_twice(num_steps: int) -> Kill:
    """Return what kills a worker after a third of the steps, and the driver with all its processes after two thirds."""

    def kill(process: subprocess.Popen[bytes], checkout: Path) -> None:
        kill_worker_after(num_steps // 3)(process, checkout)
        wait_for_checkpoint(process, checkout, 2 * num_steps // 3)
        processes = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for one in processes:
            one.kill()
        psutil.wait_procs(processes[1:])
        print(f"killed the driver after step {2 * num_steps // 3}", flush=True)

    return kill


def title(process: psutil.Process) -> str:
    """Return the command line of a process, empty if it has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def wait_for_checkpoint(process: subprocess.Popen[bytes], checkout: Path, step: int) -> None:
    """Wait until the checkpoint of this step, or a later one, is complete; each step has one."""
    newest: dict[str, int] = {}
    while max(newest.values(), default=0) < step:
        assert process.poll() is None, "the run has ended before it could be killed"
        for sums in (checkout / ".cache" / "runs").glob("*/checkpoint_*/checksums.json"):
            name = sums.parent.name
            if name in newest:
                continue
            with suppress(OSError, ValueError):  # Ray is still copying it, or has deleted it
                state = sums.with_name("state.pt").read_bytes()
                if json.loads(sums.read_text())["state.pt"] == hashlib.sha256(state).hexdigest():
                    newest[name] = int(torch.load(io.BytesIO(state), weights_only=True)["progress"]["step"])
        time.sleep(0.02)


def draw(runs: dict[str, list[float]], path: Path) -> None:
    """Draw the losses of all runs above their differences from the first; the PNG holds the losses as JSON."""
    reference = next(iter(runs.values()))
    steps = range(1, len(reference) + 1)
    figure, (upper, lower) = plt.subplots(2, 1, figsize=(10, 5.6), sharex=True, height_ratios=(3, 2))
    colours = ("#22272e", "#e5534b", "#3b7dd8", "#3fa34d", "#f0c419")
    widths, styles = (8.0, 5.5, 3.6, 2.0, 1.2), ("-", "-", "-", "-", (0, (4, 3)))
    for (name, losses), colour, width, style in zip(runs.items(), colours, widths, styles, strict=True):
        upper.plot(steps, losses, color=colour, lw=width, ls=style, label=name)
        if losses is not reference:
            differences = [abs(one - other) / other for one, other in zip(losses, reference, strict=True)]
            note = f"at most {max(differences):.1e}" if any(differences) else "0 at every step"
            lower.plot(steps, differences, color=colour, lw=1.6, ls=style, marker=".", label=note)
    for step, text in ((len(reference) // 3, "worker killed"), (2 * len(reference) // 3, "driver killed")):
        upper.axvline(step, color=colours[1], lw=0.9, ls=":")
        upper.text(step + 0.3, upper.get_ylim()[1], text, color=colours[1], va="top", size=9)
    upper.set_ylabel("loss of the step")
    lower.set_ylabel("relative difference\nfrom 1 worker")
    lower.set_xlabel("step")
    lower.set_yscale("symlog", linthresh=1e-8)
    lower.set_ylim(bottom=-3e-9)
    for axes in (upper, lower):
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2)
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Description": json.dumps(runs), "Software": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
