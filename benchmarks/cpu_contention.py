"""How long a training step takes beside other work on the CPUs, for the ways in which OpenMP threads may wait.

    python -m benchmarks.cpu_contention [--threads 2] [--busy 0 1 2] [--seconds 4] [--precision bfloat16]

The network and the batch are those of the default denoiser. Threads that wait for each other spin for a while before
they sleep; where other processes run, they spin while the thread that they wait for is not scheduled. OpenMP reads its
settings when torch is loaded, so each measurement is a process of its own. Busy processes are loops in Python.
Writes benchmarks/results/cpu_contention.md.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "cpu_contention.md"
DENOISER = {"width": 16, "growth": 8, "head_growth": 8, "num_stages": 3, "share_stages": False}
PATCH_SIZE, BATCH_SIZE = 48, 8
SETTINGS: dict[str, dict[str, str]] = {
    "default": {},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
    "GOMP_SPINCOUNT=300": {"GOMP_SPINCOUNT": "300"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "GOMP_SPINCOUNT=3000": {"GOMP_SPINCOUNT": "3000"},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
}
NICE_SETTINGS = ("OMP_WAIT_POLICY=passive", "GOMP_SPINCOUNT=1000")  # a step of the default takes a minute


def measure(threads: int, seconds: float, precision: str) -> tuple[float, float]:
    """Return the median wall-clock time and CPU time of a step, in seconds, over `seconds` but at least three steps."""
    import torch

    from dgunet import DGUNet, DGUNetConfig
    from dgunet.losses import stage_loss

    torch.set_num_threads(threads)
    network = DGUNet.with_seed(DGUNetConfig(**DENOISER), 0)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    clean = torch.rand(BATCH_SIZE, 3, PATCH_SIZE, PATCH_SIZE, generator=torch.Generator().manual_seed(0))
    degraded = clean + 0.1 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            loss = stage_loss(network(degraded), clean)
        loss.backward()
        optimizer.step()

    step()  # prepares the kernels
    print("ready", flush=True)
    sys.stdin.readline()
    wall, busy, start = [], [], time.perf_counter()
    while len(wall) < 3 or time.perf_counter() - start < seconds:
        wall_start, busy_start = time.perf_counter(), time.process_time()
        step()
        wall.append(time.perf_counter() - wall_start)
        busy.append(time.process_time() - busy_start)
    return statistics.median(wall), statistics.median(busy)


def measured(
    threads: int, nice: int, setting: dict[str, str], busy: int, options: argparse.Namespace
) -> tuple[float, float]:
    """`measure` in a process of its own, with these variables and this niceness, beside busy processes."""
    known = {name for variables in SETTINGS.values() for name in variables} | {"OMP_NUM_THREADS"}
    environment = {name: value for name, value in os.environ.items() if name not in known}
    command = [sys.executable, "-m", "benchmarks.cpu_contention", "--child", "--threads", str(threads)]
    command += ["--seconds", str(options.seconds), "--precision", options.precision]
    child = subprocess.Popen(
        ["nice", "-n", str(nice), *command],
        env={**environment, **setting}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdin and child.stdout
    child.stdout.readline()
    with busy_processes(busy):
        output, _ = child.communicate("\n")
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, command)
    wall, cpu = json.loads(output)
    return wall, cpu


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Start `count` busy loops. Each ends when this process ends, even if it is killed."""
    loop = f"import os\nwhile os.getppid() == {os.getpid()}: pass"
    loops = [subprocess.Popen([sys.executable, "-c", loop]) for _ in range(count)]
    try:
        yield
    finally:
        for process in loops:
            process.kill()
            process.wait()


def rows(options: argparse.Namespace) -> Iterator[tuple[str, int, int, dict[str, str]]]:
    """What is compared: name, threads, niceness, environment variables."""
    for nice in options.nice:
        for name, setting in SETTINGS.items():
            if nice == 0 or name in NICE_SETTINGS:
                yield name, options.threads, nice, setting
        yield "default", 1, nice, {}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--nice", type=int, nargs="+", default=[0, 15])
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--precision", choices=("bfloat16", "float32"), default="float32")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        print(json.dumps(measure(options.threads, options.seconds, options.precision)))
        return
    found = {}
    for busy in options.busy:
        for name, threads, nice, setting in rows(options):
            found[name, threads, nice, busy] = measured(threads, nice, setting, busy, options)
            print(name, threads, nice, busy, found[name, threads, nice, busy], file=sys.stderr, flush=True)
    lines = [
        "# A training step beside other work on the CPUs",
        "",
        f"The default denoiser, {BATCH_SIZE} × 3 × {PATCH_SIZE} × {PATCH_SIZE}, {options.precision}, "
        f"{os.cpu_count()} CPUs: seconds of wall clock / of CPU time per step (median).",
        "",
        "| | threads | nice | " + " | ".join(f"{busy} busy" if busy else "quiet" for busy in options.busy) + " |",
        "|---|---|---|" + "---|" * len(options.busy),
    ]
    for name, threads, nice, _ in rows(options):
        cells = (found[name, threads, nice, busy] for busy in options.busy)
        lines.append(
            f"| {name} | {threads} | {nice} | " + " | ".join(f"{wall:.2f} / {cpu:.2f}" for wall, cpu in cells) + " |"
        )
    text = "\n".join(lines) + "\n"
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
