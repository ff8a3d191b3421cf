"""Images per second and memory of a training step on a GPU, for each variant of `train.compute`.

    make bench-gpu                                                    networks of published size, and the laptop's
    python -m benchmarks.gpu --device cpu --size 32 --batch 2 --steps 1   a rehearsal; writes nothing
    python -m benchmarks.gpu --network derain --variant compiled      a part of the table; writes nothing

The baseline is the most direct loop: eager float32 in channels-first memory, Adam. All others are the pipeline's own
step (fused AdamW, channels last, gradient clipping and averaged weights included). Each variant is built, warmed up,
measured and deleted before the next one. If the step uses a CUDA graph, it is also measured without. The first step
includes compilation and capture. Memory is what PyTorch reserved at the peak. The complete table is written to
benchmarks/results/gpu.md, and anew after each network.
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
import reference_network  # noqa: E402 - the baseline is in tests/, which check it

RESULTS = HERE / "results" / "gpu.md"
NETWORKS = {
    "derain DGUNet": {"width": 40, "growth": 20, "head_growth": 16, "num_stages": 7, "share_stages": True},
    "deblur DGUNet+": {"width": 96, "growth": 48, "head_growth": 0, "num_stages": 7, "share_stages": False},
}
LAPTOP = {"width": 16, "growth": 8, "head_growth": 0, "num_stages": 3, "share_stages": False}
LAPTOP_NAME, LAPTOP_BATCH, LAPTOP_SIZE = "laptop DGUNet", 8, 48
PLAIN = {"precision": "float32", "accumulate": 1, "recompute_activations": False, "compile": False}
VARIANTS = {
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
    parser.add_argument("--variant", default="", help="only variants whose name has this in it, and the direct loop")
    given = parser.parse_args()
    if not any(given.network in name for name in (*NETWORKS, LAPTOP_NAME)):
        parser.error(f"no network has {given.network!r} in its name; there are {', '.join((*NETWORKS, LAPTOP_NAME))}")
    if not any(given.variant in name for name in VARIANTS):
        parser.error(f"no variant has {given.variant!r} in its name; there are {'; '.join(VARIANTS)}")
    device = torch.device(given.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("error: PyTorch finds no GPU; `--device cpu` is for a rehearsal")
    tables = [(network, sizes, given.batch, given.size) for network, sizes in NETWORKS.items()]
    tables.append((LAPTOP_NAME, LAPTOP, LAPTOP_BATCH, LAPTOP_SIZE))
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
        if device.type == "cuda" and not given.network and not given.variant:
            RESULTS.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def measured(
    network: str, sizes: dict[str, int | bool], batch: Batch, device: torch.device, given: argparse.Namespace
) -> Iterator[str]:
    """Yield the rows of the table of one network."""
    baseline = None
    names = [BASELINE, *(variant for variant in VARIANTS if given.variant in variant)]
    while names:
        name = names.pop(0)
        try:
            speed, first, peak, has_graph = measured_variant(name, sizes, batch, device, given)
        except torch.cuda.OutOfMemoryError:
            yield f"| {network} | {name} | – | – | out of memory | – |"
            continue
        except Exception as error:  # for example no compiler: go on with the other rows
            print(f"{network}, {name}: {error}", file=sys.stderr)
            yield f"| {network} | {name} | – | – | failed: {type(error).__name__} | – |"
            continue
        if has_graph:
            names.insert(0, name + NO_GRAPH)
        baseline = speed if name == BASELINE else baseline
        ratio = f"{speed / baseline:.2f}" if baseline else "–"
        yield f"| {network} | {name} | {speed:.1f} | {ratio} | {peak} | {first:.1f} |"


def measured_variant(
    name: str, sizes: dict[str, int | bool], batch: Batch, device: torch.device, given: argparse.Namespace
) -> tuple[float, float, str, bool]:
    """Return images/s, the seconds of the first step, the peak of memory in GiB, and whether it used a CUDA graph."""
    _forget(device)
    step, training = step_of(name, sizes, device, batch)
    first = _seconds(step, 1, device)
    _seconds(step, 2, device)  # caches fill
    speeds = [given.steps * len(batch.keys) / _seconds(step, given.steps, device) for _ in range(given.turns)]
    peak = f"{torch.cuda.max_memory_reserved() / 2**30:.1f}" if device.type == "cuda" else "–"
    return statistics.median(speeds), first, peak, training is not None and training.graph is not None


def patches(count: int, size: int, device: torch.device) -> Batch:
    """A batch as the loader hands it over: on the host, pinned where that helps."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(count, 3, size, size, generator=generator)
    degraded = (clean + 0.1 * torch.randn(clean.shape, generator=generator)).clamp(0, 1)
    images = [image.pin_memory() if device.type == "cuda" else image for image in (clean, degraded)]
    return Batch(images[0], images[1], ["none"] * count)


def step_of(
    name: str, sizes: dict[str, int | bool], device: torch.device, batch: Batch
) -> tuple[Callable[[], object], Trainer | None]:
    """A function that takes one training step, batch transfer included, and the trainer if it is the pipeline's."""
    weights = reference_network.random_weights(reference_network.shapes(**sizes), seed=0)
    if name == BASELINE:
        learned = {key: tensor.to(device).requires_grad_() for key, tensor in weights.items()}
        optimizer = torch.optim.Adam(learned.values(), lr=0.0)

        def step() -> None:
            clean, degraded = batch.clean.to(device), batch.degraded.to(device)
            optimizer.zero_grad()
            stage_loss(reference_network.blind(learned, degraded, int(sizes["num_stages"])), clean).backward()
            optimizer.step()

        return step, None
    recipe = load_task_section("derain", "train", Train).model_copy(
        update={
            "compute": Compute.model_validate(PLAIN | VARIANTS[name.removesuffix(NO_GRAPH)]),
            "batch_size": len(batch.keys),
            "learning_rate": 1e-12,
            "final_learning_rate": 1e-12,
        }
    )
    training = Trainer(published.from_state_dict(weights), recipe, device)
    training.uses_graph &= not name.endswith(NO_GRAPH)
    return lambda: training.step(batch), training


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
