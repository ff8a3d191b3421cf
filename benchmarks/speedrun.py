"""The best restoration for a number of floating-point operations of training: one trial, as a row of a log.

    python -m benchmarks.speedrun --task denoise --dataset bsds500 --benchmark "CBSD68 σ 25" --tflop 183 \
        --set "synthesize.degradation.sigma=[25, 25]" --set train.average_decay=0.999 --change "longer average"

Trains a task of params.yaml on a published set (`make data` lists them) without the scenes of the benchmark, for as
many steps as the operations allow, and measures it on the benchmark by the benchmark's protocol, with the stages of the
pipeline. Operations are those of the passes forward and backward and of the optimizer's products of matrices: torch's
FlopCounterMode counts those of one step, which are multiplied by the number of steps. Loss and validation are not
counted. --set changes a value of the task, by its place in the task's section.

Every trial that ended is a row of benchmarks/results/speedrun.jsonl, also one that failed, and speedrun.md is the table
of all. The same command at the same commit continues a trial that was interrupted; `minutes` counts only the last
call. --folder keeps shards, checkpoints and the model.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from benchmarks.tasks import training_operations
from pipeline.config.params import merged_section, read_params, task_names, validated
from pipeline.evaluation.benchmarks import load_benchmark
from pipeline.runtime.entry_point import run_command
from pipeline.runtime.environment import read_environment
from pipeline.runtime.files import write_atomically
from pipeline.runtime.provenance import commit, processor
from pipeline.sources.registry import data_set
from pipeline.synthesis.settings import Synthesize
from pipeline.training.settings import Train

PROJECT = Path(__file__).parents[1]
INTERRUPTED = (130, -signal.SIGINT, -signal.SIGTERM)  # exit statuses of a stage that got a signal of its own
LOG = PROJECT / "benchmarks" / "results" / "speedrun.jsonl"
STAGES = (
    "prepare --manifest manifest.jsonl --report prepare.json --thumbnails thumbnails.npz",
    "synthesize --task {task} --manifest manifest.jsonl --out shards",
    "train --task {task} --shards shards --model model --curve train.csv",
    "evaluate --task {task} --model model --shards shards/test --validation shards/val --curve train.csv "
    "--thumbnails thumbnails.npz --out report",
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one trial, add its row to the log, and write the table."""
    args = _parse(arguments)
    params = trial_params(read_params(PROJECT / "params.yaml"), args.task, args.dataset, args.benchmark, args.set)
    if args.seed is not None:
        params["seed"] = args.seed
    if missing := load_benchmark(params, args.benchmark).absent():
        raise ValueError(f"{args.benchmark}: no images in {missing}; `make data` says how to get them")
    per_step = operations_of_step(params, args.task)
    num_steps = steps_within(args.tflop, per_step)
    params[args.task]["train"] |= {"num_steps": num_steps, "validate_every": max(1, num_steps // 8)}
    name = hashlib.sha256(json.dumps([params, commit()], sort_keys=True).encode()).hexdigest()[:12]
    folder = args.folder or PROJECT / ".cache" / "speedrun" / name
    row = {
        "task": args.task,
        "dataset": args.dataset,
        "benchmark": args.benchmark,
        "change": args.change,
        "set": args.set,
        "seed": params["seed"],
        "num_steps": num_steps,
        "tflop": round(num_steps * per_step, 3),
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit(),
        "hardware": processor(),
    }
    started = time.monotonic()
    try:
        result = run(params, args.task, args.benchmark, folder)
    except subprocess.CalledProcessError as error:
        if error.returncode in INTERRUPTED:
            raise KeyboardInterrupt from error
        result = {"failed": f"{error.cmd[2].removeprefix('pipeline.')} exited with {error.returncode}"}
    except Exception as error:  # of any kind: a trial that ended has a row
        result = {"failed": f"{type(error).__name__}: {error}"}
    add_row(LOG, row | result | {"minutes": round((time.monotonic() - started) / 60, 1)})
    if "failed" in result:
        raise ValueError(f"the trial failed: {result['failed']}; its row says so, its files are in {folder}")


def trial_params(
    params: dict[str, Any], task: str, dataset: str, benchmark: str, changes: Sequence[str]
) -> dict[str, Any]:
    """Return params.yaml for a trial.

    Args:
        params: content of params.yaml; is changed.
        changes: as "train.learning_rate=0.001".

    Raises:
        ValueError: there is no such task, data set or benchmark, or a change is not of that form.
    """
    if task not in task_names(params):
        raise ValueError(f"params.yaml has no task {task!r}; available: {', '.join(task_names(params))}")
    params["tasks"] = [task]
    measured_on = load_benchmark(params, benchmark).dataset
    without = [measured_on] if measured_on else []
    source = {"kind": "dataset", "name": data_set(dataset).name, "without": without}
    params["prepare"] |= {"sources": [source], "split": {"val": 0.03, "test": 0.01}}
    params[task].setdefault("train", {})
    params[task].setdefault("evaluate", {})["benchmarks"] = [benchmark]
    for change in changes:
        place, equals, value = change.partition("=")
        *sections, key = place.split(".")
        if not equals or not sections:
            raise ValueError(f"--set {change}: write it as train.learning_rate=0.001")
        section = params[task]
        for part in sections:
            section = section.setdefault(part, {})
        section[key] = yaml.safe_load(value)
    return params


def steps_within(tflop: float, per_step: float) -> int:
    """Return how many steps the operations allow; ValueError if not one. Both in 10^12 operations."""
    if tflop < per_step:
        raise ValueError(f"--tflop {tflop:g}: one step takes {per_step:.4g} TFLOP")
    return int(tflop // per_step)


def operations_of_step(params: Mapping[str, Any], task: str) -> float:
    """Return the floating-point operations of a training step, in 10^12.

    Raises:
        ValueError: the recipe computes more than the passes that are counted.
    """
    recipe = validated(merged_section(params, task, "train"), Train)
    if recipe.compute.recompute_activations or recipe.operator_loss.degradation or recipe.operator_loss.adjoint:
        raise ValueError(f"{task}.train: operations of operator_loss and recompute_activations are not counted")
    channels = validated(merged_section(params, task, "synthesize"), Synthesize).channels
    config = {"image_channels": channels, **recipe.network.model_dump()}
    return training_operations({"config": config}, recipe.model_copy(update={"num_steps": 1}))


def run_stages(stages: Sequence[str], params: Mapping[str, Any], task: str, folder: Path) -> None:
    """Run stages of the pipeline with these parameters in a folder. Raises CalledProcessError."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(dict(params), sort_keys=False, allow_unicode=True))
    environment = os.environ | {
        "PYTHONPATH": str(PROJECT),
        "DGUNET_DATA": str(Path(read_environment().data).absolute()),
        "DGUNET_STORAGE": str(folder / "runs"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
    }
    for stage in stages:
        name, *arguments = stage.format(task=task).split()
        run_stage([sys.executable, "-m", f"pipeline.{name}", *arguments], folder, environment)


def run_stage(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
    """Run a command in a folder. After SIGTERM or Ctrl-C, wait until it has saved its work and ended.

    Raises CalledProcessError if the command fails, KeyboardInterrupt after a signal.
    """
    processes: list[subprocess.Popen[bytes]] = []
    received: list[int] = []

    def stop(number: int, _: object) -> None:
        received.append(number)
        # The terminal sends Ctrl-C to the stage too. A second one is meant for a stage that does not end.
        if number == signal.SIGTERM or received.count(number) > 1:
            for process in processes:
                process.terminate()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        processes.append(subprocess.Popen(command, cwd=folder, env=environment))
        if received:  # while the process was started
            processes[0].terminate()
        status = processes[0].wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        raise KeyboardInterrupt
    if status:
        raise subprocess.CalledProcessError(status, command)


def run(params: Mapping[str, Any], task: str, benchmark: str, folder: Path) -> dict[str, Any]:
    """Run the stages in a folder, and return the numbers of the benchmark. Raises CalledProcessError."""
    run_stages(STAGES, params, task, folder)
    metrics = json.loads((folder / "report" / "metrics.json").read_text())
    found = metrics["benchmarks"].get(benchmark)
    if found is None:
        why = metrics["not_measured"].get(benchmark, {"reason": "its images are missing"})["reason"]
        return {"failed": f"{benchmark} was not measured: {why}"}
    return {kind: round(found[kind]["psnr"], 3) for kind in ("degraded", "baseline", "restored")}


def add_row(log: Path, row: Mapping[str, Any]) -> None:
    """Add a row to the log, and write the table of all its rows beside it."""
    with log.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    write_atomically(log.with_suffix(".md"), table(rows))


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of trials as Markdown: by task and benchmark, the best first, then those that failed."""
    lines = [
        "# Restoration for a number of operations",
        "",
        "Written by `python -m benchmarks.speedrun`, whose docstring says what is counted. speedrun.jsonl also has "
        "data set, seed, commit and hardware of each row. Mean PSNR in dB by the benchmark's protocol.",
    ]
    for task, benchmark in sorted({(row["task"], row["benchmark"]) for row in rows}):
        own = [row for row in rows if (row["task"], row["benchmark"]) == (task, benchmark)]
        own.sort(key=lambda row: -row.get("restored", 0.0))
        lines += ["", f"## {task}, {benchmark}", ""]
        lines += ["| TFLOP | steps | degraded | baseline | restored | what changed | values | date |"]
        lines += ["|---:|---:|---:|---:|---:|---|---|---|"]
        for row in own:
            values = " ".join(f"`{change}`" for change in row["set"])
            numbers = [f"{row[kind]:.2f}" if kind in row else "" for kind in ("degraded", "baseline", "restored")]
            numbers[2] = numbers[2] or f"failed: {row['failed']}"
            cells = [f"{row['tflop']:.1f}", str(row["num_steps"]), *numbers, row["change"], values, row["date"]]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", required=True, help="a section of params.yaml")
    parser.add_argument("--dataset", required=True, help="clean photographs to train on; `make data` lists the names")
    parser.add_argument("--benchmark", required=True, help="a name of the section benchmarks of params.yaml")
    parser.add_argument("--tflop", required=True, type=float, help="operations of training, in 10^12")
    parser.add_argument("--set", action="append", default=[], metavar="PLACE=VALUE", help="train.learning_rate=0.001")
    parser.add_argument("--seed", type=int, help="default: that of params.yaml")
    parser.add_argument("--change", required=True, help="what this trial tries, in a few words")
    parser.add_argument("--folder", type=Path, help="working folder (default: one of its own in .cache/speedrun)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_command(main)
