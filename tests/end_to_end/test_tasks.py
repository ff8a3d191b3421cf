"""Every section of params.yaml builds, small and in this process; so do published recipes and tasks of real pairs."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from factories import PROJECT, repeated_defaults

from dgunet.checkpoint import load_model
from dgunet.images import read_image, write_image
from dgunet.inference import restore
from dgunet.network import DGUNet, DGUNetConfig
from dgunet.published import _unused
from pipeline.apply_recipe import apply_recipe
from pipeline.config.params import (
    ParamsError,
    load_section,
    load_task_section,
    merge,
    merged_section,
    task_names,
    validated,
)
from pipeline.dataloader import dataset, loader, pairs
from pipeline.degradations.noise import GaussianNoise
from pipeline.evaluation.benchmarks import load_benchmark
from pipeline.evaluation.protocol import Protocol
from pipeline.evaluation.scores import evaluate
from pipeline.evaluation.settings import Evaluate
from pipeline.preparation.settings import Prepare, Split
from pipeline.prepare import prepare
from pipeline.shards.format import Index, write_index, write_shard
from pipeline.sources.hashing import pixel_hash
from pipeline.sources.listing import Pairs
from pipeline.sources.manifest import SPLITS, Entry
from pipeline.synthesis import tiles
from pipeline.synthesis.settings import Synthesize
from pipeline.training import loop, trainer
from pipeline.training.context import WorkerContext
from pipeline.training.settings import Train
from pipeline.validate import check

PARAMS_FILE = PROJECT / "params.yaml"
PARAMS: dict[str, Any] = yaml.safe_load(PARAMS_FILE.read_text())
SECTIONS = task_names(PARAMS)
RECIPES = sorted((PROJECT / "infra" / "recipes").glob("*.yaml"))
SMALL_TILES = {"tile_size": 64, "stride": 64, "held_out_tile_size": 64, "copies": 1}
SMALL_RUN = {"patch_size": 32, "batch_size": 1, "num_steps": 2, "warmup_steps": 1, "validate_every": 2}
SMALL_NETWORK = {"width": 8, "growth": 4, "head_growth": 4, "num_stages": 2}
PUBLISHED = {  # parameters as counted over the published state dicts, where those exist at that size
    "derain": 3_661_912,
    "derain_heavy": 3_661_912,
    "derain_plus": 12_176_107,
    "deblur": 17_331_512,
    "deblur_plus": 69_572_915,
    "camera_noise": 17_331_512,
    "camera_noise_plus": 48_361_987,
    "sensing": 2_546_748 - 256 * 1024,  # but for Φ, whose rows are as many as measurements of a block
    "sensing_full_image": 2_546_748 - 256 * 1024,
    "sensing_plus": 6_915_612 - 103 * 1024,
}
SHARED_SLOPES = {
    "derain": 6,
    "derain_heavy": 6,
    "derain_plus": 19,
    "deblur": 6,
    "deblur_plus": 19,
    "camera_noise": 6,
    "camera_noise_plus": 19,
    "sensing": 2,
    "sensing_full_image": 2,
    "sensing_plus": 10,
}
UNPUBLISHED = {"denoise", "denoise_gray", "super_resolve", "mixed"}  # the sizes of published networks for other tasks


def scene(seed: int, height: int = 64, width: int = 64) -> np.ndarray:
    """Smooth colours with a few edges, H W 3 in [0, 1]."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    waves = [0.5 + 0.3 * np.sin(rows / rng.uniform(3, 9)) * np.cos(columns / rng.uniform(3, 9)) for _ in range(3)]
    image = np.stack(waves, axis=2)
    top, left = rng.integers(8, 40, 2)
    image[top : top + 16, left : left + 16] = rng.random(3)
    return image.astype(np.float32)


def photographs(folder: Path) -> list[Entry]:
    """One photograph for each split."""
    entries = []
    for number, split in enumerate(SPLITS):
        path = folder / f"{split}.png"
        write_image(path, scene(number))
        sha256 = pixel_hash(read_image(path))
        entries.append(
            Entry(uri=str(path), sha256=sha256, height=64, width=64, split=split, scene=sha256, source="folder:p")
        )
    return entries


def synthesize(images: list[Entry], settings: Synthesize, recipe: dict[str, Any], out: Path) -> None:
    """The work of the command, without Ray."""
    for split in SPLITS:
        (out / split).mkdir(parents=True)
        mine = [image for image in tiles.select_images(images, settings) if image.split == split]
        entries = [
            write_shard(out / split / f"{number:06d}.tar", tiles.make_pairs(shard, settings, seed=1))
            for number, shard in enumerate(tiles.plan_shards(mine, settings))
        ]
        write_index(out / split, Index({**recipe, "seed": 1}, entries))


CARD = {"task": "test", "provenance": {"commit": "none", "data": "none"}}


def train(settings: Train, channels: int, shards: Path, model: Path) -> list[float]:
    """The work of the command, without Ray; returns the losses."""
    network = DGUNet.with_seed(DGUNetConfig(image_channels=channels, **settings.network.model_dump()), 0)
    patches = dataset.PatchDataset(
        shards / "train", settings.batch_size, settings.patch_size, seed=1, mixup_alpha=settings.mixup_alpha
    )
    losses = []

    def report(metrics: dict[str, float], folder: Path | None) -> None:
        assert folder is not None
        losses.append(metrics["loss"])
        trainer.export(folder, model, CARD)

    loop.fit(
        network, settings, WorkerContext(report=report),
        batches=lambda step: loader.batches(
            patches,
            rank=0,
            world_size=1,
            first_step=step,
            num_steps=settings.num_steps,
            num_loader_processes=0,
            pin_memory=False,
        ),
        validation=lambda: pairs.pairs(shards / "val"),
    )  # fmt: skip
    return losses


@pytest.mark.parametrize("task", SECTIONS)
def test_every_section_is_synthesized_trained_measured_and_restores(tmp_path: Path, task: str) -> None:
    made = load_task_section(task, "synthesize", Synthesize, PARAMS_FILE).model_copy(update=SMALL_TILES)
    run = load_task_section(task, "train", Train, PARAMS_FILE)
    run = run.model_copy(update={**SMALL_RUN, "network": run.network.model_copy(update=SMALL_NETWORK)})
    judged = load_task_section(task, "evaluate", Evaluate, PARAMS_FILE)

    synthesize(photographs(tmp_path), made, merged_section(PARAMS, task, "synthesize"), tmp_path / "shards")
    losses = train(run, made.channels, tmp_path / "shards", tmp_path / "model")
    assert all(math.isfinite(loss) for loss in losses)

    network = load_model(tmp_path / "model")
    evaluation = evaluate(network, pairs.pairs(tmp_path / "shards" / "test"), judged.baseline, judged.protocol)
    assert 0 < evaluation.restored.psnr < 100
    for quality in (evaluation.degraded, evaluation.baseline):  # neither is clipped to [0, 1]
        assert math.isfinite(quality.psnr) and math.isfinite(quality.ssim)
    assert len(evaluation.stages) == SMALL_NETWORK["num_stages"]

    photo = np.random.default_rng(0).integers(0, 256, (33, 41, 3), dtype=np.uint8)
    assert restore(network, photo).shape == photo.shape


@pytest.mark.parametrize("task", SECTIONS)
def test_patches_fit_into_tiles_and_blocks_into_patches(task: str) -> None:
    made = load_task_section(task, "synthesize", Synthesize, PARAMS_FILE)
    run = load_task_section(task, "train", Train, PARAMS_FILE)
    assert run.patch_size <= made.tile_size
    if run.network.sensing_ratio_percent is not None:
        assert run.patch_size % 32 == 0
        assert (made.channels, made.degradation.kind, run.loss) == (1, "none", "mse_clamped")


def test_the_usual_benchmarks_are_measured_as_the_field_does() -> None:
    """Recipes name the benchmarks of the default tasks, which would take longer than the rest of `make repro`."""
    named = {task: load_task_section(task, "evaluate", Evaluate, PARAMS_FILE).benchmarks for task in SECTIONS}
    for task in ("denoise", "derain"):
        assert not named[task]
        recipe = yaml.safe_load((PROJECT / "infra" / "recipes" / f"{task}.yaml").read_text())
        named[task] = recipe[task]["evaluate"]["benchmarks"]
    assert all(named.values()), "every task has a test set of the field beside its own"
    assert "Rain100L" in named["derain"] and "Rain100L" in named["mixed"]
    rain = load_benchmark(PARAMS, "Rain100L")
    assert rain.protocol == Protocol("luma", quantise=True, crop=(320, 480), border=0, self_ensemble=False)
    unclipped = Protocol("rgb", quantise=False, crop=None, border=0, self_ensemble=False)
    for task in ("denoise", "denoise_gray"):
        benchmarks = [load_benchmark(PARAMS, name) for name in named[task]]
        sigmas = [one.degradation.sigma for one in benchmarks if isinstance(one.degradation, GaussianNoise)]
        assert sigmas == [(15, 15), (25, 25), (50, 50)]
        assert all(one.protocol == unclipped for one in benchmarks)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_fits_params_yaml_and_has_the_published_number_of_parameters(tmp_path: Path, path: Path) -> None:
    recipe = yaml.safe_load(path.read_text())
    (tmp_path / "params.yaml").write_text(text := apply_recipe(PARAMS_FILE.read_text(), path.read_text()))
    check(tmp_path / "params.yaml")
    after = yaml.safe_load(text)
    for task, section in recipe.items():
        for stage in section if task in SECTIONS else ():
            expected = merge(merged_section(PARAMS, task, stage), section[stage])
            assert merged_section(after, task, stage) == expected
    assert not repeated_defaults(after)
    min_side = load_section("prepare", Prepare, tmp_path / "params.yaml").min_side
    assert min_side >= PARAMS["prepare"]["min_side"]
    for task in recipe.keys() - {"prepare"}:
        made = load_task_section(task, "synthesize", Synthesize, tmp_path / "params.yaml")
        run = load_task_section(task, "train", Train, tmp_path / "params.yaml")
        assert run.patch_size <= min(made.tile_size, min_side)
        assert run.compute.precision == "bfloat16"
        with torch.device("meta"):
            network = DGUNet(DGUNetConfig(image_channels=made.channels, **run.network.model_dump()))
        num_learned = (
            sum(parameter.numel() for parameter in network.parameters()) - 1024 * network.config.num_measurements
        )
        assert run.compute.recompute_activations == (num_learned > 60e6), "memory: the network of 70 million at 256²"
        never_used = sum(math.prod(shape) for shape in _unused(network.config).values())
        if path.stem not in UNPUBLISHED:
            assert num_learned + never_used - SHARED_SLOPES[path.stem] == PUBLISHED[path.stem]


def test_there_is_a_recipe_for_every_published_network_and_every_task() -> None:
    assert {path.stem for path in RECIPES} == {*PUBLISHED, *UNPUBLISHED}
    fitting = {path.stem: yaml.safe_load(path.read_text()).keys() - {"prepare"} for path in RECIPES}
    assert set().union(*fitting.values()) == set(SECTIONS)
    for name, tasks in fitting.items():
        kind = name.removesuffix("_plus").removesuffix("_full_image")
        expected = {task for task in SECTIONS if task.startswith("sensing_")} if kind == "sensing" else {kind}
        assert tasks == expected, "a recipe bears the name of the task that it changes"


def stated(section: Any, name: str = "") -> set[str]:
    """The dotted keys of a section that hold values."""
    if not isinstance(section, dict):
        return {name}
    return {found for key, value in section.items() for found in stated(value, f"{name}.{key}")}


def test_recipes_of_a_task_state_the_same_keys_so_that_one_replaces_the_other_completely() -> None:
    keys: dict[str, list[set[str]]] = {}
    for path in RECIPES:
        recipe = yaml.safe_load(path.read_text())
        for task in recipe.keys() - {"prepare"}:
            keys.setdefault(task, []).append(stated({stage: recipe[task][stage] for stage in ("synthesize", "train")}))
    assert max(map(len, keys.values())) == 3
    for task, recipes in keys.items():
        assert all(recipe == recipes[0] for recipe in recipes), task


def real_pairs(folder: Path) -> list[Entry]:
    """Eight scenes with a degraded partner, the first with two, as prepare lists them; and photographs without."""
    for place in ("clean", "rainy"):
        (folder / place).mkdir()
    for number in range(8):
        clean = scene(number)
        write_image(folder / "clean" / f"{number}.png", clean)
        for partner in range(2 if number == 0 else 1):
            write_image(folder / "rainy" / f"{number}_{partner}.png", (clean + 0.1 + 0.1 * partner).clip(0, 1))
    source = Pairs(clean=str(folder / "clean/{}.png"), degraded=str(folder / "rainy/{}_*.png"))
    settings = Prepare(sources=[source], min_side=16, max_megapixels=1.0, split=Split(val=0.25, test=0.25))
    return prepare(settings, seed=2, cache_file=folder / "inspections.sqlite").entries


def test_a_task_of_real_pairs_is_built_from_their_partners_as_they_came(tmp_path: Path) -> None:
    entries = real_pairs(tmp_path)
    assert Counter(entry.split for entry in entries).keys() == set(SPLITS)
    names = {"degradation": {"kind": "none"}, "real_pairs": [str(tmp_path / "clean/{}.png")]}
    content = {**merged_section(PARAMS, "derain", "synthesize"), **SMALL_TILES, **names}
    settings = validated(content, Synthesize)
    synthesize(entries, settings, content, tmp_path / "shards")
    found = [pair for split in SPLITS for pair in pairs.pairs(tmp_path / "shards" / split)]
    assert len({pair.key for pair in found}) == len(found) == 9
    for pair in found:
        partner = int(pair.key.rsplit("_", 1)[1])
        expected = (pair.clean + 0.1 + 0.1 * partner).clip(0, 1)
        np.testing.assert_allclose(pair.degraded, expected, atol=1.1 / 255)
    patches = dataset.PatchDataset(tmp_path / "shards" / "train", batch_size=2, patch_size=32, seed=1)
    clean, degraded, _ = patches[0, 0]
    assert (degraded - clean).mean() == pytest.approx(0.1, abs=0.06)


def test_other_tasks_take_the_clean_side_of_real_pairs_once(tmp_path: Path) -> None:
    entries = real_pairs(tmp_path)
    settings = load_task_section("denoise", "synthesize", Synthesize, PARAMS_FILE)
    images = tiles.select_images(entries, settings)
    assert len(images) == len({image.sha256 for image in images}) == 8
    assert all(image.degraded is None for image in images)


def test_real_pairs_that_are_not_there_or_would_be_degraded_again_are_refused(tmp_path: Path) -> None:
    content = {**merged_section(PARAMS, "derain", "synthesize"), "real_pairs": ["rain/target"]}
    with pytest.raises(ParamsError, match="used unchanged"):
        validated(content, Synthesize)
    settings = validated({**content, "degradation": {"kind": "none"}, "copies": 1}, Synthesize)
    with pytest.raises(ValueError, match=r"no pair from pairs:rain/target; it has pairs from no source"):
        tiles.select_images(photographs(tmp_path), settings)
