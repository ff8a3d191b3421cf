"""A small `dvc repro` of the default tasks makes the shards, losses and weights that golden.json holds.

A change of the code that is not meant to change results must leave golden.json as it is. A change that is meant to, or
that changes the rounding of floating-point operations, writes golden.json again in the same commit:

    pytest tests/end_to_end/test_golden.py -m "" --update-golden

Shards are the same on every machine. Losses and weights depend on the order of floating-point operations. The test
limits PyTorch, oneDNN and MKL to AVX2 and one thread; still they may choose by the CPU. On another kind of CPU than the
one in golden.json the losses must agree to a relative 1e-5, and the exact comparison is skipped.
"""

import csv
import json
import platform
from pathlib import Path
from typing import Any

import pytest
from checkout import Checkout, sha256

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(1800)]
GOLDEN = Path(__file__).with_name("golden.json")
TASKS = ("denoise", "derain")
AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "AVX2", "DGUNET_CPUS_PER_WORKER": "1",
    "OMP_NUM_THREADS": "1",
}  # fmt: skip
Results = dict[str, Any]


def shrink(params: dict[str, Any]) -> None:
    params["tasks"] = list(TASKS)
    for task in TASKS:
        train = params[task]["train"]
        train["operator_loss"] = {"degradation": 0.0, "adjoint": 0.0}
        train |= {"num_steps": 6, "warmup_steps": 2, "validate_every": 1, "patch_size": 32, "batch_size": 2}
        train.setdefault("network", {}).update(width=8, growth=4, num_stages=2)
        train.setdefault("compute", {}).update(precision="float32")
        params[task]["synthesize"] |= {"tile_size": 64, "stride": 256, "held_out_tile_size": 160, "copies": 1}


def cpu() -> str:
    """Vendor, family and model of the CPU; empty where Linux does not say or the CPU has no AVX2."""
    if platform.system() != "Linux":
        return ""
    lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    entries = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    if "avx2" not in entries.get("flags", "").split():
        return ""
    return " ".join(entries[name] for name in ("vendor_id", "cpu family", "model"))


def losses(curve: Path) -> list[float]:
    with curve.open(newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Results:
    """What this machine computes, in the form of golden.json."""
    checkout = Checkout(tmp_path_factory.mktemp("checkout"), shrink, AVX2)
    checkout.run("dvc", "repro", *(f"train@{task}" for task in TASKS))
    shards = checkout.folder / "data" / "shards"
    results = {
        "cpu": cpu(),
        "shards": {str(path.relative_to(shards)): sha256(path) for path in sorted(shards.rglob("*")) if path.is_file()},
        "losses": {task: losses(checkout.folder / "reports" / task / "train.csv") for task in TASKS},
        "weights": {task: sha256(checkout.folder / "models" / task / "model.safetensors") for task in TASKS},
    }
    if request.config.getoption("update_golden"):
        GOLDEN.write_text(json.dumps(results, indent=1) + "\n")
    return results


@pytest.fixture(scope="module")
def golden(results: Results) -> Results:
    """What golden.json holds; after `results`, which may write it."""
    read: Results = json.loads(GOLDEN.read_text())
    return read


def test_shards_are_the_same_on_every_machine(results: Results, golden: Results) -> None:
    assert results["shards"] == golden["shards"]


@pytest.mark.parametrize("task", TASKS)
def test_losses_are_the_same_on_every_machine_but_for_rounding(results: Results, golden: Results, task: str) -> None:
    assert results["losses"][task] == pytest.approx(golden["losses"][task], rel=1e-5)


@pytest.mark.parametrize("task", TASKS)
def test_losses_and_weights_are_equal_on_the_same_kind_of_cpu(results: Results, golden: Results, task: str) -> None:
    if results["cpu"] != golden["cpu"] or not golden["cpu"]:
        pytest.skip(
            f"golden.json comes from CPU {golden['cpu']}, this is {results['cpu'] or 'unknown or without AVX2'}: "
            "losses are compared to a relative 1e-5, weights are not"
        )
    assert results["losses"][task] == golden["losses"][task]
    assert results["weights"][task] == golden["weights"][task]
