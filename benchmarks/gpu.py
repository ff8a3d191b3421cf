"""Images per second and memory of a training step on a GPU, by how it is computed (`train.compute`).

    make bench-gpu                                                    256², batch 16, derain DGUNet and the 70 M DGUNet+
    python -m benchmarks.gpu --device cpu --size 32 --batch 2 --steps 1   a rehearsal; writes nothing

The baseline is the most direct loop: eager float32 in channels-first memory, Adam. All others are the pipeline's own
step (fused AdamW, channels last, gradient clipping and averaged weights included). The rows take turns, so what else
the machine does weighs on all; told are medians. The answer goes to benchmarks/results/gpu.md.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from dgunet import published
from dgunet.losses import stage_loss
from pipeline.config.params import load_task_section
from pipeline.dataloader.loader import Batch
from pipeline.training.settings import Compute, Train
from pipeline.training.trainer import Trainer

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))
import reference_network  # noqa: E402 - the baseline lives with the tests, which hold it to be right

RESULTS = HERE / "results" / "gpu.md"
NETWORKS = {
    "derain DGUNet": {"width": 40, "growth": 20, "head_growth": 16, "num_stages": 7, "share_stages": True},
    "deblur DGUNet+": {"width": 96, "growth": 48, "head_growth": 0, "num_stages": 7, "share_stages": False},
}
PLAIN = {"precision": "float32", "accumulate": 1, "recompute_activations": False, "compile": False}
WAYS = {
    "float32": {},
    "bf16": {"precision": "bfloat16"},
    "bf16, compiled": {"precision": "bfloat16", "compile": True},
    "bf16, recomputed": {"precision": "bfloat16", "recompute_activations": True},
    "bf16, recomputed, compiled": {"precision": "bfloat16", "recompute_activations": True, "compile": True},
    "bf16, in 4 parts": {"precision": "bfloat16", "accumulate": 4},
}
BASELINE = "direct loop, float32"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    for name, default in (("size", 256), ("batch", 16), ("steps", 5), ("turns", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    device = torch.device(given.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("skipped: needs a GPU")
    lines = [
        "# A training step on a GPU, by how it is computed",
        "",
        f"{_name(device)}, torch {torch.__version__}; {given.batch} images of {given.size}², medians of {given.turns} "
        f"turns of {given.steps} steps. Ratio: images per second, of the direct loop's.",
        "",
        "| network | step | images/s | ratio | peak memory, GiB |",
        "|---|---|---:|---:|---:|",
    ]
    for network, sizes in NETWORKS.items():
        for line in measured(network, sizes, device, given):
            print(line, flush=True)
            lines.append(line)
        if device.type == "cuda":
            RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")


def measured(network: str, sizes: dict[str, int | bool], device: torch.device, given: argparse.Namespace) -> list[str]:
    """Rows of the table: every way is warmed up and its memory read alone, then all take turns."""
    batch = patches(given.batch, given.size, device)
    steps: dict[str, Callable[[], object]] = {}
    memory: dict[str, str] = {}
    for name in (BASELINE, *WAYS):
        try:
            steps[name] = step_of(name, sizes, device, batch)
            memory[name] = warmed_up(steps[name], device)
        except torch.cuda.OutOfMemoryError:
            steps.pop(name, None)
            memory[name] = "out of memory"
        except Exception as error:  # no compiler, say: the other rows are worth having
            print(f"{network}, {name}: {error}", file=sys.stderr)
            steps.pop(name, None)
            memory[name] = f"failed: {type(error).__name__}"
    speeds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(given.turns):
        for name, step in steps.items():
            _synchronise(device)
            started = time.perf_counter()
            for _ in range(given.steps):
                step()
            _synchronise(device)
            speeds[name].append(given.steps * given.batch / (time.perf_counter() - started))
    rows = []
    for name, peak in memory.items():
        speed, ratio = "–", "–"
        if name in speeds:
            speed = f"{statistics.median(speeds[name]):.1f}"
            if BASELINE in speeds:
                pairs = zip(speeds[name], speeds[BASELINE], strict=True)
                ratio = f"{statistics.median(ours / base for ours, base in pairs):.2f}"
        rows.append(f"| {network} | {name} | {speed} | {ratio} | {peak} |")
    return rows


def patches(count: int, size: int, device: torch.device) -> Batch:
    """A batch as the loader hands it over: on the host, pinned where that helps."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(count, 3, size, size, generator=generator)
    degraded = (clean + 0.1 * torch.randn(clean.shape, generator=generator)).clamp(0, 1)
    images = [image.pin_memory() if device.type == "cuda" else image for image in (clean, degraded)]
    return Batch(images[0], images[1], ["none"] * count)


def step_of(name: str, sizes: dict[str, int | bool], device: torch.device, batch: Batch) -> Callable[[], object]:
    """A function that takes one training step, batch transfer included."""
    weights = reference_network.random_weights(reference_network.shapes(**sizes), seed=0)
    if name == BASELINE:
        learned = {key: tensor.to(device).requires_grad_() for key, tensor in weights.items()}
        optimiser = torch.optim.Adam(learned.values(), lr=0.0)

        def step() -> None:
            clean, degraded = batch.clean.to(device), batch.degraded.to(device)
            optimiser.zero_grad()
            stage_loss(reference_network.blind(learned, degraded, int(sizes["num_stages"])), clean).backward()
            optimiser.step()

        return step
    recipe = load_task_section("derain", "train", Train).model_copy(
        update={
            "compute": Compute.model_validate(PLAIN | WAYS[name]),
            "batch_size": len(batch.keys),
            "learning_rate": 1e-12,
            "final_learning_rate": 1e-12,
        }
    )
    training = Trainer(published.from_state_dict(weights), recipe, device)
    return lambda: training.step(batch)


def warmed_up(step: Callable[[], object], device: torch.device) -> str:
    """Take steps until compilers and caches are done; return the peak memory of one more, in GiB."""
    for _ in range(3):
        step()
    if device.type != "cuda":
        return "–"
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()  # of the ways that are already there
    step()
    torch.cuda.synchronize()
    return f"{(torch.cuda.max_memory_allocated() - before) / 2**30:.1f} above the weights"


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


if __name__ == "__main__":
    main()
