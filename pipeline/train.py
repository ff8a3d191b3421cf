"""Trains a DGUNet on Ray workers, from shards; exports the averaged weights with the best PSNR on the val split.

If no validation is better than the degraded images, it exports the initial weights.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

from tqdm import tqdm

from pipeline.cluster import training_run
from pipeline.cluster.channel import RunListener
from pipeline.cluster.checkpoints import delete_checkpoints, write_origin
from pipeline.cluster.run_lock import hold_run_lock
from pipeline.cluster.session import session
from pipeline.config.params import load_section, load_task_section, merged_task, read_params
from pipeline.runtime.entry_point import run_command
from pipeline.runtime.provenance import commit, digest
from pipeline.shards.format import INDEX, checksum, read_index
from pipeline.tracking import runs
from pipeline.training import trainer
from pipeline.training.job import TrainingJob, run_name
from pipeline.training.settings import Train

SECONDS_BETWEEN_LINES = 20
CURVE = ("step", "loss", "learning_rate", "val_psnr", "skipped_steps")


def main() -> None:
    """Train one task's network."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.train", description=__doc__)
    parser.add_argument("--task", required=True, help="a section of params.yaml")
    parser.add_argument("--shards", required=True, type=Path, help="folder with train/ and val/")
    parser.add_argument("--model", required=True, type=Path, help="model folder to write")
    parser.add_argument("--curve", required=True, type=Path, help="CSV of the training curve to write")
    args = parser.parse_args()
    recipe = load_task_section(args.task, "train", Train)
    seed = load_section("seed", int)
    data = {split: checksum(args.shards / split / INDEX) for split in ("train", "val")}
    indices = {split: read_index(args.shards / split) for split in ("train", "val")}
    job = TrainingJob(recipe, int(indices["train"].recipe["channels"]), args.shards.resolve(), indices, seed)
    card = {"task": args.task, "provenance": {"commit": commit(), "data": data["train"]}}
    name = run_name(args.task, recipe, data, seed)
    params = {**merged_task(read_params(), args.task), "seed": seed}

    with (
        hold_run_lock(name),
        session() as dashboard,
        runs.run(args.task, name, {"fingerprint": name}, params, system_metrics=True) as run,
        tempfile.TemporaryDirectory() as folder,
    ):
        run.tag({"commit": card["provenance"]["commit"], "data": data["train"]})
        write_origin(
            name, card["provenance"]["commit"], {shard.sha256 for index in indices.values() for shard in index.shards}
        )
        with closing(_Display(args.task, recipe.num_steps)) as display:
            display.notice(run.places(dashboard))
            listener = RunListener(lambda metrics: run.log(metrics, int(metrics["step"])), display.show, display.notice)
            training_run.fit(job, name=name, into=Path(folder), listener=listener, most_workers=recipe.batch_size)
        progress = trainer.read_progress(Path(folder))
        if progress.best_step == 0:
            print(f"train {args.task}: {_nothing_learned(progress)}", file=sys.stderr)
        run.log_history(progress.history)
        trainer.export(Path(folder), args.model, card)
        _write_curve(args.curve, progress.history)
        run.tag({"model": digest(args.model.iterdir())})
        delete_checkpoints(name)


class _Display:
    """Shows step, loss, val PSNR, images/s and time left: a bar on a terminal, a line now and then in a log."""

    def __init__(self, task: str, num_steps: int) -> None:
        self.task, self.num_steps, self.shown, self.next_line = task, num_steps, -1, 0.0
        self.bar = tqdm(
            desc=f"train {task}", total=num_steps, unit="step", dynamic_ncols=True, disable=None, leave=True,
            bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}",
        )  # fmt: skip

    def show(self, step: int, stats: Mapping[str, float]) -> None:
        if step == self.shown:
            return
        self.shown = step
        text = f"loss {stats['loss']:.4f}{_val(stats)}{_speed(stats)}"
        if not self.bar.disable:
            self.bar.n = step
            self.bar.set_postfix_str(text)
        elif time.monotonic() >= self.next_line or step == self.num_steps:
            self.next_line = time.monotonic() + SECONDS_BETWEEN_LINES
            print(f"train {self.task}: step {step}/{self.num_steps}, {text}", file=sys.stderr, flush=True)

    def notice(self, text: str) -> None:
        self.bar.write(f"train {self.task}: {text}", file=sys.stderr)

    def close(self) -> None:
        self.bar.close()


def _val(stats: Mapping[str, float]) -> str:
    last, best = stats["val_psnr"], stats["best_val_psnr"]
    if not math.isfinite(last):
        return ""
    if not math.isfinite(best):
        return f", val {last:.2f} dB (degraded {stats['val_psnr_degraded']:.2f})"
    return f", val {last:.2f} dB" if last == best else f", val {last:.2f} dB (best {best:.2f})"


def _nothing_learned(progress: trainer.Progress) -> str:
    best = max(entry["val_psnr"] for entry in progress.history)
    return (
        f"the best val PSNR, {best:.2f} dB, is below that of the degraded images, {progress.degraded_psnr:.2f} dB. The "
        "network as it was before training, which changes images almost nothing, is stored. Train for more steps, on "
        "more photographs, or with another learning rate"
    )


def _speed(stats: Mapping[str, float]) -> str:
    """Return images/s and the time left, each only if it is known; after a resumption it is not known at first."""
    images, left = stats["images_per_second"], stats["seconds_left"]
    text = f", {images:.0f} images/s" if images > 0 else ""
    if not math.isfinite(left):
        return text
    minutes, seconds = divmod(int(left), 60)
    hours, rest = divmod(minutes, 60)
    return f"{text}, {hours}:{rest:02d}:{seconds:02d} left" if hours else f"{text}, {minutes}:{seconds:02d} left"


def _write_curve(path: Path, history: Sequence[Mapping[str, float | int]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, CURVE, lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)


if __name__ == "__main__":
    run_command(main)
