"""`make plan`: each number against what the code really writes, and each unknown said to be one."""

import ast
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from factories import PROJECT

from dgunet.network import DGUNet, DGUNetConfig
from pipeline import plan
from pipeline.shards.format import Pair, write_shard
from pipeline.sources.manifest import Entry, write_manifest
from pipeline.training.trainer import Trainer

TABLE = """# A training step on a GPU, by how it is computed

NVIDIA H100 80GB HBM3, torch 2.13.0+cu126; 16 images of 256², medians of 5 turns of 5 steps.

| network | step | images/s | ratio | peak memory, GiB |
|---|---|---:|---:|---:|
| derain DGUNet | direct loop, float32 | 21.5 | 1.00 | 30.0 above the weights |
| derain DGUNet | bf16 | 123.4 | 5.74 | 15.0 above the weights |
| deblur DGUNet+ | bf16, recomputed | – | – | out of memory |
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with params.yaml, the recipes and the results of benchmarks but those of a GPU; no photographs."""
    for name in ("params.yaml", "infra"):
        (tmp_path / name).symlink_to(PROJECT / name)
    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    for path in (PROJECT / "benchmarks" / "results").glob("*.md"):
        if path.name != "gpu.md":
            (results / path.name).write_text(path.read_text())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows(task: str, gpus: int = 4, images_per_second: float | None = None) -> dict[str, plan.Row]:
    return {row.quantity: row for row in plan.plan(plan.read_recipe(task), gpus, images_per_second)}


def test_without_a_measured_gpu_images_per_second_must_be_given(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan.main(["--task", "derain", "--gpus", "4"])
    printed = capsys.readouterr().out
    assert "no GPU was measured: give IMAGES_PER_SECOND=…, or measure with `make bench-gpu`" in printed
    assert re.search(r"^hours +not known", printed, re.M)
    assert "at least" not in printed.partition("hours")[2].splitlines()[0]
    plan.main(["--task", "derain", "--gpus", "4", "--images-per-second", "100"])
    printed = capsys.readouterr().out
    hours = 214250 * 16 / 400 / 3600
    assert f"at least {hours:.1f} ({4 * hours:.1f} GPU hours)" in printed
    assert re.search(r"100 +given: IMAGES_PER_SECOND", printed)
    assert "benchmarks/results/loader.md: 649 images/s per core" in printed


def test_measured_images_per_second_are_those_of_the_same_network_patch_and_variant(checkout: Path) -> None:
    Path(plan.GPU_RESULTS).write_text(TABLE)
    derain = rows("derain")["images/s of one GPU"]
    assert derain.value == "123.4"
    assert derain.source == "benchmarks/results/gpu.md: derain DGUNet, bf16, NVIDIA H100 80GB HBM3"
    for task, reason in {
        "deblur_plus": "has no row deblur DGUNet+, bf16, recomputed",  # it did not fit into the memory
        "derain_plus": "has no row for this network",
        "denoise": "with patches of 128²",
        "sensing_25": "has no row for this network",
    }.items():
        found = rows(task)["images/s of one GPU"]
        assert found.value == "not known" and reason in found.source, task


def test_networks_and_variants_are_those_of_the_benchmark(checkout: Path) -> None:
    tree = ast.parse((PROJECT / "benchmarks" / "gpu.py").read_text())
    values = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and isinstance(node.value, ast.Dict)
    }
    assert values["NETWORKS"] == plan.MEASURED
    train = plan.read_recipe("derain").train
    for name, changed in values["VARIANTS"].items():
        compute = train.compute.model_copy(update=values["PLAIN"] | changed)
        assert plan.variant(train.model_copy(update={"compute": compute})) == name


@pytest.mark.parametrize("name", sorted(path.stem for path in (PROJECT / "infra" / "recipes").glob("*.yaml")))
def test_every_recipe_has_a_plan_and_every_line_a_source(checkout: Path, name: str) -> None:
    assert all(row.quantity and row.value and row.source for row in rows(name, images_per_second=10.0).values())
    text = (PROJECT / "infra" / "recipes" / f"{name}.yaml").read_text()
    if stated := re.search(r"([\d.]+) million parameters", text):
        assert rows(name)["network"].value == f"{stated[1]} M parameters" or name == "sensing"


def test_a_folder_that_is_no_checkout_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="run from the root of the checkout"):
        plan.read_recipe("denoise")


def test_a_task_is_found_in_the_file_of_several(checkout: Path) -> None:
    assert plan.read_recipe("sensing_25").file.name == "sensing.yaml"
    assert plan.read_recipe("sensing_1").train.network.sensing_ratio_percent == 1
    with pytest.raises(ValueError, match=r"there is no recipe 'x'; available: camera_noise, .*super_resolve"):
        plan.read_recipe("x")


def test_more_gpus_than_images_of_a_batch_are_refused(checkout: Path) -> None:
    for gpus in ("0", "17"):
        with pytest.raises(ValueError, match=f"GPUS={gpus}: a batch of .* has 16 images, so it can use 1 to 16 GPUs"):
            plan.main(["--task", "derain", "--gpus", gpus])
    with pytest.raises(ValueError, match="IMAGES_PER_SECOND=-1 must be more than 0"):
        plan.main(["--task", "derain", "--gpus", "1", "--images-per-second", "-1"])


@pytest.mark.parametrize("task", ["derain", "denoise"])  # two arrays in a pair, and one
def test_bytes_of_shards_are_those_that_are_written(checkout: Path, task: str) -> None:
    settings = plan.read_recipe(task).synthesize
    clean = np.zeros((200, 123, settings.channels), np.uint8)
    degraded = None if settings.online else clean
    record = {"degradation": {"kind": "rain", "streaks": list(range(40))}}
    pairs = [Pair(f"{number:064d}", clean, degraded, record) for number in range(20)]
    entry = write_shard(checkout / "x.tar", pairs)
    assert 20 * plan.bytes_of_pair(200, 123, settings) == pytest.approx(entry.bytes, rel=0.02)


def test_shards_are_counted_over_the_photographs_of_the_checkout(checkout: Path) -> None:
    common = {"uri": "x.png", "scene": "s", "source": "folder:."}
    shapes = {"a": (384, 704, "train"), "b": (100, 2000, "train"), "c": (600, 600, "val"), "d": (512, 512, "test")}
    write_manifest(
        Path("data/manifest.jsonl"),
        [Entry(sha256=k, height=h, width=w, split=split, **common) for k, (h, w, split) in shapes.items()],  # type: ignore[arg-type]
    )
    found = rows("derain")
    settings = plan.read_recipe("derain").synthesize
    of_tile = plan.bytes_of_pair(384, 384, settings)
    # Tiles of 384 in steps of 320 in a photograph of 384 x 704, each in `copies` versions; b is smaller than min_side.
    assert found["shards, train"].value == f"{2 * settings.copies * of_tile / 1e6:.1f} MB, 8 pairs"
    assert found["shards, train"].source == "data/manifest.jsonl: 1 photographs"
    assert found["shards, val"].value.endswith(f" {4 * settings.copies} pairs")
    assert found["shards, read by a machine"].source == "once: they fit DGUNET_SHARD_CACHE_GB"


def test_shards_that_the_cache_cannot_hold_are_read_in_each_epoch(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = Entry(uri="x", sha256="a", height=384, width=384, split="train", scene="s", source="folder:.")
    write_manifest(Path("data/manifest.jsonl"), [entry])
    monkeypatch.setenv("DGUNET_SHARD_CACHE_GB", "0.001")
    row = rows("derain")["shards, read by a machine"]
    assert row.source == f"once in each of {214250 * 16 // 4} epochs: more than DGUNET_SHARD_CACHE_GB = 0.001"
    assert row.value == "at most 3.0 TB"


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_bytes_of_a_checkpoint_are_those_that_are_written(checkout: Path, tmp_path: Path, optimizer: str) -> None:
    recipe = plan.read_recipe("derain")
    train = recipe.train.model_copy(update={"optimizer": optimizer})
    network = DGUNet.with_seed(DGUNetConfig(**recipe.train.network.model_dump()), 0)
    trainer = Trainer(network, train, torch.device("cpu"))
    for parameter in trainer.network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for part in trainer.optimizers:
        part.step()
    (tmp_path / "checkpoint").mkdir()
    trainer.save(tmp_path / "checkpoint")
    written = sum(path.stat().st_size for path in (tmp_path / "checkpoint").iterdir())
    copies, what = plan.copies_in_a_checkpoint(train)
    counted = 4 * copies * plan.num_parameters(recipe)
    assert counted == pytest.approx(written, rel=0.02)
    if train.optimizer == recipe.train.optimizer:
        assert rows("derain")["checkpoint"].value == f"{counted / 1e6:.1f} MB"
        assert what in rows("derain")["checkpoint"].source


def test_gradients_are_those_of_a_ring(checkout: Path) -> None:
    weights = 4 * plan.num_parameters(plan.read_recipe("derain"))
    for gpus in (1, 2, 8):
        sent = 2 * (gpus - 1) / gpus * weights
        assert rows("derain", gpus)["gradients, sent by one GPU in a step"].value == (
            f"{sent / 1e6:.1f} MB" if sent else "0 B"
        )
