"""Images per second and memory of a training step on a GPU, by how it is computed (`train.compute`).

    make bench-gpu                                                    networks of published size, and the laptop's
    python -m benchmarks.gpu --device cpu --size 32 --batch 2 --steps 1   a rehearsal; writes nothing
    python -m benchmarks.gpu --network derain --way compiled --turns 3    a part of the table; writes nothing

The baseline is the most direct loop: eager float32 in channels-first memory, Adam. All others are the pipeline's own
step (fused AdamW, channels last, gradient clipping and averaged weights included). Each way is built, warmed up,
measured and deleted before the next: the peak of memory is its own. The first step includes compilation and the capture
of the CUDA graph. The table is written to benchmarks/results/gpu.md.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator
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
LAPTOP = {"width": 16, "growth": 8, "head_growth": 0, "num_stages": 3, "share_stages": False}
LAPTOP_BATCH, LAPTOP_SIZE = 8, 48
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
NO_GRAPH = ", without a CUDA graph"
HEAD = (
    "| network | step | images/s | ratio | peak memory, GiB | first step, s |",
    "|---|---|---:|---:|---:|---:|",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    for name, default in (("size", 256), ("batch", 16), ("steps", 5), ("turns", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--network", default="", help="only networks whose name has this in it")
    parser.add_argument("--way", default="", help="only ways whose name has this in it, and the direct loop")
    given = parser.parse_args()
    device = torch.device(given.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("skipped: needs a GPU")
    tables = [(network, sizes, given.batch, given.size) for network, sizes in NETWORKS.items()]
    tables.append(("laptop DGUNet", LAPTOP, LAPTOP_BATCH, LAPTOP_SIZE))
    lines = ["# A training step on a GPU, by how it is computed", ""]
    for number, (network, sizes, batch, size) in enumerate(tables):
        if number in (0, len(NETWORKS)):
            lines += [
                f"{_name(device)}, torch {torch.__version__}; {batch} images of {size}², medians of {given.turns} "
                f"turns of {given.steps} steps. Ratio: images per second, of the direct loop's.",
                "",
                *HEAD,
            ]
        if given.network not in network:
            continue
        for line in measured(network, sizes, patches(batch, size, device), device, given):
            print(line, flush=True)
            lines.append(line)
        lines += [""] if number >= len(NETWORKS) - 1 else []
        if device.type == "cuda" and not given.network and not given.way:
            RESULTS.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def measured(
    network: str, sizes: dict[str, int | bool], batch: Batch, device: torch.device, given: argparse.Namespace
) -> Iterator[str]:
    """Yield the rows of the table of one network."""
    baseline = None
    ways = [way for own in WAYS for way in ((own, own + NO_GRAPH) if "compiled" not in own else (own,))]
    for name in (BASELINE, *(way for way in ways if given.way in way)):
        try:
            speed, first, peak = measured_way(name, sizes, batch, device, given)
        except torch.cuda.OutOfMemoryError:
            yield f"| {network} | {name} | – | – | out of memory | – |"
            continue
        except Exception as error:  # no compiler, say: the other rows are worth having
            print(f"{network}, {name}: {error}", file=sys.stderr)
            yield f"| {network} | {name} | – | – | failed: {type(error).__name__} | – |"
            continue
        baseline = speed if name == BASELINE else baseline
        ratio = f"{speed / baseline:.2f}" if baseline else "–"
        yield f"| {network} | {name} | {speed:.1f} | {ratio} | {peak} | {first:.1f} |"


def measured_way(
    name: str, sizes: dict[str, int | bool], batch: Batch, device: torch.device, given: argparse.Namespace
) -> tuple[float, float, str]:
    """Return the images/s of a way, the seconds of its first step, and its peak of memory in GiB."""
    _forget(device)
    step = step_of(name, sizes, device, batch)
    first = _seconds(step, 1, device)
    _seconds(step, 2, device)  # caches fill
    speeds = [given.steps * len(batch.keys) / _seconds(step, given.steps, device) for _ in range(given.turns)]
    peak = f"{torch.cuda.max_memory_allocated() / 2**30:.1f}" if device.type == "cuda" else "–"
    del step
    _forget(device)
    return statistics.median(speeds), first, peak


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
            "compute": Compute.model_validate(PLAIN | WAYS[name.removesuffix(NO_GRAPH)]),
            "batch_size": len(batch.keys),
            "learning_rate": 1e-12,
            "final_learning_rate": 1e-12,
        }
    )
    training = Trainer(published.from_state_dict(weights), recipe, device)
    training.uses_graph &= not name.endswith(NO_GRAPH)
    return lambda: training.step(batch)


def _seconds(step: Callable[[], object], count: int, device: torch.device) -> float:
    _synchronise(device)
    started = time.perf_counter()
    for _ in range(count):
        step()
    _synchronise(device)
    return time.perf_counter() - started


def _forget(device: torch.device) -> None:
    """Give memory back, and start a new count of its peak."""
    gc.collect()
    torch.compiler.reset()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


if __name__ == "__main__":
    main()
