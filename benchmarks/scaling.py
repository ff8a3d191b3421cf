"""Weak scaling on simulated nodes: the cost of communication, measured, and estimated for 64 GPUs.

    python -m benchmarks.scaling [--steps 30]

1, 2 and 4 Ray nodes of one CPU each on this machine, one training worker per node, the default derain recipe with its
batch per worker. Steps with and without the exchange of gradients (`no_sync`) alternate; the difference is the cost of
communication, also on a busy machine. The result goes to benchmarks/results/scaling.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ray.cluster_utils import Cluster
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode

from dgunet.network import DGUNet, DGUNetConfig
from pipeline.cluster import resources, training_run
from pipeline.cluster.channel import RunListener
from pipeline.cluster.session import session
from pipeline.config.params import load_task_section
from pipeline.dataloader.loader import Batch
from pipeline.runtime import files
from pipeline.training import collectives
from pipeline.training.context import WorkerContext
from pipeline.training.settings import Train
from pipeline.training.trainer import Trainer

RESULTS = Path(__file__).parent / "results" / "scaling.md"
NETWORKS = {  # parameters in millions, as counted by tests/network
    "derain DGUNet": DGUNetConfig(),
    "derain DGUNet+": DGUNetConfig(head_growth=0, share_stages=False),
    "deblur DGUNet+": DGUNetConfig(width=96, growth=48, head_growth=0, share_stages=False),
}
LINKS = {"NVLink in one machine, 300 GB/s": 300e9, "InfiniBand 400 Gb/s": 50e9, "Ethernet 100 Gb/s": 12.5e9}
GPUS, PER_GPU, SIZE = 64, 16, 256
NOMINAL = 989e12  # operations per second
LOADER_RATE = 649  # samples per second and core, benchmarks/results/loader.md


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30, help="number of steps of each kind")
    steps = parser.parse_args().steps
    lines = [
        "# Weak scaling",
        "",
        f"`python -m benchmarks.scaling --steps {steps}`, {platform.machine()}, {os.cpu_count()} cores, gloo;",
        "the derain section of params.yaml, its batch on every worker; medians of steps in turn with and without the",
        "exchange of gradients, on the slowest worker. Workers beyond the cores of this machine share them.",
        "",
        "| workers (Ray nodes) | s per step, alone | s per step, together | images/s | share of communication |",
        "|---:|---:|---:|---:|---:|",
    ]
    exchanges = []
    for count in (1, 2, 4):
        seconds_of = on_nodes(count, steps)
        share = 1 - seconds_of["alone"] / seconds_of["together"] if count > 1 else 0.0
        images = count * seconds_of["batch"] / seconds_of["together"]
        lines.append(
            f"| {count} | {seconds_of['alone']:.3f} | {seconds_of['together']:.3f} | {images:.1f} "
            f"| {100 * max(share, 0):.1f} % |"
        )
        print(lines[-1], flush=True)
        if count > 1:
            seconds = [seconds_of[f"exchange of {name}"] for name in NETWORKS]
            rates = [
                ring_bytes(config, count) / took / 1e9 for config, took in zip(NETWORKS.values(), seconds, strict=True)
            ]
            cells = [f"{1e3 * took:.0f} ms, {rate:.2f} GB/s" for took, rate in zip(seconds, rates, strict=True)]
            exchanges.append(f"| {count} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "The exchange alone, of gradients as large as those of the published networks, by gloo over the loopback, with",
        "the bytes that each worker sends, 2·(N − 1)/N times the gradients, a second:",
        "",
        "| workers | " + " | ".join(NETWORKS) + " |",
        "|---:|" + "---:|" * len(NETWORKS),
        *exchanges,
    ]
    lines += estimate()
    RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def on_nodes(count: int, steps: int) -> dict[str, float]:
    """Return the times of a group of workers on `count` nodes."""
    reports: list[dict[str, float]] = []
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(count):
        nodes.add_node(num_cpus=1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {
            "RAY_ADDRESS": nodes.address, "RAY_AUTH_MODE": "disabled", "DGUNET_STORAGE": f"{folder}/runs",
            "PYTHONPATH": str(files.PROJECT),
        }  # fmt: skip
        with session():
            work = partial(timed, steps, load_task_section("derain", "train", Train))
            share = resources.WorkerResources(count, 1.0, 0.0)
            training_run.fit(
                work, name="scaling", into=Path(folder) / "out", listener=RunListener(reports.append), resources=share
            )
    nodes.shutdown()
    return reports[0]


def timed(steps: int, recipe: Train, context: WorkerContext) -> None:
    """Take steps in turn with and without the exchange of gradients; report the slowest worker's medians."""
    recipe = recipe.model_copy(update={"batch_size": recipe.batch_size * context.world_size})
    trainer = Trainer(DGUNet.with_seed(DGUNetConfig(**recipe.network.model_dump()), 0), recipe, context.device)
    own = recipe.batch_size // context.world_size
    clean = torch.rand(own, 3, recipe.patch_size, recipe.patch_size, generator=torch.Generator().manual_seed(0))
    batch = Batch(clean, clean.flip(0), ["none"] * own)
    spent: dict[bool, list[float]] = {True: [], False: []}
    for number in range(2 * steps + 4):
        with_exchange = number % 2 == 0
        if context.world_size > 1:
            torch.distributed.barrier()
        started = time.perf_counter()
        if with_exchange or not isinstance(trainer.objective, DistributedDataParallel):
            loss, _ = trainer.step(batch)
            if context.world_size > 1:  # on a CPU the loop asks for these, too, after each step
                torch.distributed.all_reduce(loss)
                collectives.broadcast((False, False))
        else:
            with trainer.objective.no_sync():
                trainer.step(batch)
        if number >= 4:
            spent[with_exchange].append(time.perf_counter() - started)
    medians: Any = torch.tensor([statistics.median(spent[False]), statistics.median(spent[True])])
    if context.world_size > 1:
        torch.distributed.all_reduce(medians, op=torch.distributed.ReduceOp.MAX)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "done").touch()
        figures = {"alone": float(medians[0]), "together": float(medians[1]), "batch": float(own)} | exchanged(context)
        context.report(figures, Path(folder) if context.rank == 0 else None)


def exchanged(context: WorkerContext) -> dict[str, float]:
    """Median seconds of an exchange of the gradients of each published network, on this worker."""
    if context.world_size == 1:
        return {}
    found = {}
    for name, config in NETWORKS.items():
        gradients, seconds = torch.zeros(num_parameters(config)), []
        for _ in range(7):
            torch.distributed.barrier()
            started = time.perf_counter()
            torch.distributed.all_reduce(gradients)
            seconds.append(time.perf_counter() - started)
        found[f"exchange of {name}"] = statistics.median(seconds[2:])
    return found


def num_parameters(config: DGUNetConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in DGUNet(config).parameters())


def ring_bytes(config: DGUNetConfig, num_workers: int) -> float:
    """Return the bytes that each worker sends in a ring exchange of the network's float32 gradients."""
    return 2 * (num_workers - 1) / num_workers * 4 * num_parameters(config)


def estimate() -> list[str]:
    """What a ring exchange of the gradients among 64 GPUs takes, by the bytes of a step and the bandwidth of a link."""
    lines = [
        "",
        f"## {GPUS} GPUs, estimated",
        "",
        "A ring exchange sends 2·(N − 1)/N times the gradients (float32) over each link, almost independently of N.",
        "Time per step:",
        "",
        "| network | parameters | gradients | " + " | ".join(LINKS) + " |",
        "|---|---:|---:|" + "---:|" * len(LINKS),
    ]
    for name, config in NETWORKS.items():
        count, sent = num_parameters(config), ring_bytes(config, GPUS)
        times = " | ".join(f"{1e3 * sent / rate:.2f} ms" for rate in LINKS.values())
        lines.append(f"| {name} | {count / 1e6:.1f} M | {4 * count / 1e6:.0f} MB | {times} |")
    lines += [
        "",
        "at the links' nominal speeds, without the latency of the ring's 2·(N − 1) hops, which was not measured.",
        "DistributedDataParallel exchanges while it computes the backward pass, so a step need not grow by all of it.",
        "Validation and checkpoints communicate once in `validate_every` steps, losses and stop requests about each",
        "second.",
        "",
        f"Beside the time in which an H200 would compute a step at its nominal {NOMINAL / 1e12:.0f} TFLOP/s (bfloat16,",
        f"dense), which no network reaches: {PER_GPU} images of {SIZE}² on each GPU, {GPUS * PER_GPU} in all",
        "(train.batch_size; a run uses at most as many workers as a batch has images). Real times are longer. If link",
        "and GPU reach the same fraction of their nominal speed, the share is at most the one shown. Images per second",
        f"and the cores that make pairs ({LOADER_RATE} a second each, benchmarks/results/loader.md) are upper bounds.",
        "",
        "| network | TFLOP a step | ms, at least | images/s of a GPU, at most | exchange by InfiniBand / step "
        "| by Ethernet / step | loader cores of a GPU, at most |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, config in NETWORKS.items():
        sent, flops = ring_bytes(config, GPUS), flops_of_a_step(config)
        seconds = flops / NOMINAL
        shares = " | ".join(
            f"{100 * sent / LINKS[link] / seconds:.1f} %" for link in ("InfiniBand 400 Gb/s", "Ethernet 100 Gb/s")
        )
        rate = PER_GPU / seconds
        lines.append(
            f"| {name} | {flops / 1e12:.1f} | {1e3 * seconds:.1f} | {rate:.0f} | {shares} | {rate / LOADER_RATE:.1f} |"
        )
    return [*lines, "", "Measured steps on a GPU: benchmarks/results/gpu.md."]


def flops_of_a_step(config: DGUNetConfig) -> int:
    """Floating-point operations of a forward and a backward pass of one GPU's share of a batch; nothing is computed."""
    network = DGUNet(config)
    with FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False) as counter:
        estimates = network(torch.empty(PER_GPU, 3, SIZE, SIZE))
        torch.stack([estimate.sum() for estimate in estimates]).sum().backward()
    total: int = counter.get_total_flops()
    return total


if __name__ == "__main__":
    main()
