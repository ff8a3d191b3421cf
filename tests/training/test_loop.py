"""The training loop: a resumed run equals an uninterrupted one, steps that are not finite change nothing, it learns."""

import io
import math
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from factories import RECIPE, pair, pythonpath, recipe
from torch.utils._python_dispatch import TorchDispatchMode

from dgunet import metrics
from dgunet.checkpoint import load_model, read_card
from dgunet.config import LossKind
from dgunet.network import DGUNet, DGUNetConfig, blocks
from dgunet.network.unfolding import LastStage
from pipeline.dataloader import dataset, loader
from pipeline.dataloader import pairs as dataloader_pairs
from pipeline.shards.format import Index, Pair, read_index, write_index, write_shard
from pipeline.training import loop, progress, trainer
from pipeline.training.context import WorkerContext
from pipeline.training.cuda_graph import share_of_host
from pipeline.training.job import TrainingJob
from pipeline.training.loop import TrainingFailed
from pipeline.training.settings import Train
from pipeline.training.trainer import Progress, Trainer, learning_rate

CARD = {"task": "test", "provenance": {"commit": "none", "data": "none"}}
CPU = torch.device("cpu")


class Log:
    """Stores the reports and a copy of each checkpoint."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.lines, self.checkpoints = folder, [], []  # type: ignore[var-annotated]

    def report(self, metrics: dict[str, float], checkpoint: Path | None) -> None:
        self.lines.append(metrics)
        assert checkpoint is not None
        copy = self.folder / f"checkpoint{len(self.checkpoints)}"
        self.checkpoints.append(shutil.copytree(checkpoint, copy))


def network(settings: Train) -> DGUNet:
    return DGUNet.with_seed(DGUNetConfig(image_channels=3, **settings.network.model_dump()), 1)


def data(shards: Path, settings: Train) -> dict[str, Callable[..., Any]]:
    """Batches and validation pairs of the only worker, as `loop.fit` takes them."""
    patches = dataset.PatchDataset(shards / "train", settings.batch_size, settings.patch_size, 1)
    batches = partial(
        loader.batches,
        patches,
        rank=0,
        world_size=1,
        num_steps=settings.num_steps,
        num_loader_processes=0,
        pin_memory=False,
    )
    return {
        "batches": lambda first_step: batches(first_step=first_step),
        "validation": lambda: dataloader_pairs.pairs(shards / "val"),
    }


def trained(shards: Path, settings: Train, log: Log, resume: Path | None = None, **callbacks: Any) -> DGUNet:
    net = network(settings)
    context = WorkerContext(resume=nullcontext(resume), report=log.report, **callbacks)
    loop.fit(net, settings, context, **data(shards, settings))
    return net


def exported(log: Log) -> Path:
    trainer.export(log.checkpoints[-1], log.folder / "model", CARD)
    return log.folder / "model"


def weights(net: DGUNet) -> list[torch.Tensor]:
    return list(net.state_dict().values())


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_resumed_run_is_bit_identical_to_one_that_was_not_interrupted(
    shards: Path, tmp_path: Path, optimizer: str
) -> None:
    settings = recipe(num_steps=12, validate_every=3, optimizer=optimizer)
    whole, parts = Log(tmp_path / "whole"), Log(tmp_path / "parts")
    uninterrupted = trained(shards, settings, whole)

    calls = iter(range(100))
    trained(shards, settings, parts, stop_requested=lambda: next(calls) >= 4)  # stops after step 5, between reports
    assert torch.load(parts.checkpoints[-1] / trainer.STATE, weights_only=True)["progress"]["step"] == 5
    resumed = trained(shards, settings, parts, resume=parts.checkpoints[-1])

    for one, other in zip(weights(resumed), weights(uninterrupted), strict=True):
        assert torch.equal(one, other)
    assert parts.lines[1] == {}  # saved without validating first
    assert trainer.history(parts.checkpoints[-1]) == trainer.history(whole.checkpoints[-1])
    best = [load_model(exported(log)) for log in (whole, parts)]
    assert all(torch.equal(a, b) for a, b in zip(weights(best[0]), weights(best[1]), strict=True))


def test_checkpoints_in_between_change_nothing(shards: Path, tmp_path: Path) -> None:
    settings = recipe(num_steps=7, validate_every=3)
    whole, parts = Log(tmp_path / "whole"), Log(tmp_path / "parts")
    uninterrupted = trained(shards, settings, whole)
    trained(shards, settings, parts, seconds_between_checkpoints=0.0)
    assert [line.get("step") for line in parts.lines] == [None, None, 3, None, None, 6, 7]
    resumed = trained(shards, settings, Log(tmp_path / "resumed"), resume=parts.checkpoints[3])  # of step 4
    assert all(torch.equal(*pair) for pair in zip(weights(resumed), weights(uninterrupted), strict=True))
    assert trainer.history(parts.checkpoints[-1]) == trainer.history(whole.checkpoints[-1])


def test_a_checkpoint_that_is_asked_for_changes_nothing_and_comes_before_a_validation(
    shards: Path, tmp_path: Path
) -> None:
    settings = recipe(num_steps=6, validate_every=3)
    whole, parts = Log(tmp_path / "whole"), Log(tmp_path / "parts")
    trained(shards, settings, whole)
    asked = iter([False, True, True, False, False, False])
    trained(shards, settings, parts, save_requested=lambda: next(asked))
    assert [line.get("step") for line in parts.lines] == [None, None, 3, 6]
    assert trainer.history(parts.checkpoints[-1]) == trainer.history(whole.checkpoints[-1])


def test_a_job_uses_the_callbacks_of_its_context(shards: Path) -> None:
    lines: list[dict[str, float]] = []
    stops = iter([False, False, True])
    context = WorkerContext(
        report=lambda metrics, folder: lines.append(metrics),
        stop_requested=lambda: next(stops),
        save_requested=lambda: True,
    )
    indices = {split: read_index(shards / split) for split in ("train", "val")}
    TrainingJob(recipe(num_steps=6, validate_every=2), 3, shards, indices, 1)(context)
    assert [line.get("step") for line in lines] == [None, None, 2, None]


def test_a_stop_when_validation_is_due_saves_first_and_the_next_run_validates(shards: Path, tmp_path: Path) -> None:
    settings = recipe(num_steps=6, validate_every=3)
    whole, parts = Log(tmp_path / "whole"), Log(tmp_path / "parts")
    trained(shards, settings, whole)
    calls = iter(range(100))
    trained(shards, settings, parts, stop_requested=lambda: next(calls) >= 2)
    assert parts.lines == [{}]
    for last in (3, 6):
        calls = iter(range(100))
        stopping = {"stop_requested": lambda calls=calls: next(calls) >= 2} if last == 3 else {}
        trained(shards, settings, parts, resume=parts.checkpoints[-1], **stopping)
    assert [line.get("step") for line in parts.lines] == [None, 3, None, 6]
    assert trainer.history(parts.checkpoints[-1]) == trainer.history(whole.checkpoints[-1])


def test_a_checkpoint_that_does_not_fit_on_the_disk_is_an_oserror(
    shards: Path, small_disk: Callable[[Path, str], None], tmp_path: Path
) -> None:
    settings = recipe()
    (tmp_path / "small").mkdir()
    small_disk(tmp_path / "small", "16k")
    with pytest.raises(OSError, match="is the disk full"):
        Trainer(network(settings), settings, CPU).save(tmp_path / "small")


def test_a_checkpoint_that_cannot_be_written_is_tried_again(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full, save, waited = iter([True, True, False]), Trainer.save, []

    def fails_twice(self: Trainer, folder: Path) -> None:
        if next(full):
            raise OSError("full")
        save(self, folder)

    def retry_while_unavailable(what: str, action: Callable[[], Any]) -> None:
        while True:
            try:
                return action()
            except OSError:
                waited.append(what)

    monkeypatch.setattr(Trainer, "save", fails_twice)
    log = Log(tmp_path / "log")
    trained(shards, recipe(num_steps=3, validate_every=3), log, retry_while_unavailable=retry_while_unavailable)
    assert waited == ["the checkpoint cannot be written"] * 2
    assert len(log.checkpoints) == 1


def test_shards_that_are_unavailable_for_a_while_change_nothing(shards: Path, tmp_path: Path) -> None:
    settings, waited = recipe(num_steps=6, validate_every=3), []
    whole, parts = Log(tmp_path / "whole"), Log(tmp_path / "parts")
    uninterrupted = trained(shards, settings, whole)
    inputs = data(shards, settings)
    away = {"batch": 2, "validation": 1}  # attempts

    def batches(first_step: int) -> Iterator[loader.Batch]:
        for step, batch in enumerate(inputs["batches"](first_step), first_step):
            if step == 4 and away["batch"]:
                away["batch"] -= 1
                raise OSError("the shards are away")
            yield batch

    def validation() -> Iterator[dataloader_pairs.EvaluationPair]:
        pairs = inputs["validation"]()
        yield next(pairs)
        if away["validation"]:
            away["validation"] -= 1
            raise OSError("the shards are away")
        yield from pairs

    def retry_while_unavailable(meaning: str, action: Callable[[], Any]) -> Any:
        while True:
            try:
                return action()
            except OSError:
                waited.append(meaning)

    net = network(settings)
    context = WorkerContext(report=parts.report, retry_while_unavailable=retry_while_unavailable)
    loop.fit(net, settings, context, batches=batches, validation=validation)
    assert waited == ["shards cannot be read"] * 3
    assert all(torch.equal(*pair) for pair in zip(weights(net), weights(uninterrupted), strict=True))
    assert trainer.history(parts.checkpoints[-1]) == trainer.history(whole.checkpoints[-1])


def test_a_checkpoint_may_be_deleted_once_it_is_loaded(shards: Path, tmp_path: Path) -> None:
    settings, log, gone = recipe(num_steps=6, validate_every=3), Log(tmp_path / "log"), []
    trained(shards, settings, log)

    @contextmanager
    def fetched() -> Iterator[Path]:
        yield log.checkpoints[0]
        gone.append(True)

    again = Log(tmp_path / "again")
    context = WorkerContext(resume=fetched(), report=again.report, progress=lambda step, stats: gone.append(False))
    loop.fit(network(settings), settings, context, **data(shards, settings))
    assert gone[0] is True


def test_the_host_waits_for_the_device_about_every_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    meter = progress.ProgressMeter(first_step=5)
    for steps, seconds, expected in ((1, 0.3, 3), (3, 0.125, 20), (20, 2.0, 10), (10, 60.0, 1), (1, 0.0, 20)):
        now[0] += seconds
        assert meter.steps_to_next_sync(meter.last_sync + steps, most=20) == expected
    assert meter.steps_to_next_sync(meter.last_sync + 1, most=1) == 1


def test_the_time_left_after_a_resume_is_unknown_until_a_step_took_its_usual_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    settings, meter = recipe(num_steps=1000), progress.ProgressMeter(first_step=400)

    def left_after(steps: int, seconds: float) -> float:
        now[0] += seconds
        step = meter.last_sync + steps
        left = meter.stats(Progress(step), settings)["seconds_left"]
        meter.steps_to_next_sync(step, most=1)
        return left

    now[0] += 50.0
    assert math.isnan(meter.stats(Progress(400), settings)["seconds_left"]), "a validation was due at the resume"
    assert math.isnan(left_after(1, 300.0)), "the first step compiles the network"
    assert left_after(1, 2.0) == pytest.approx(598 * 2.0)
    assert left_after(98, 98.0) == pytest.approx(500 * 100 / 99)
    assert left_after(500, 500.0) == 0.0


def test_a_run_that_is_resumed_where_a_validation_is_due_reports_no_speed(shards: Path, tmp_path: Path) -> None:
    settings, stopped, resumed = recipe(num_steps=6, validate_every=3), Log(tmp_path / "a"), Log(tmp_path / "b")
    calls, shown = iter(range(100)), []
    trained(shards, settings, stopped, stop_requested=lambda: next(calls) >= 2)  # after step 3, before its validation
    trained(
        shards, settings, resumed, stopped.checkpoints[-1], progress=lambda step, stats: shown.append((step, stats))
    )
    first, last = resumed.lines
    assert (first["step"], "images_per_second" in first) == (3, False)
    assert (last["step"], last["images_per_second"] > 0) == (6, True)
    assert shown[0][0] == 3
    assert math.isnan(shown[0][1]["seconds_left"])
    assert all(math.isnan(stats["seconds_left"]) or stats["seconds_left"] < 1000 for _, stats in shown)


def test_an_error_for_too_little_memory_says_what_to_change(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(self: Trainer, batch: loader.Batch) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nand pages more")

    monkeypatch.setattr(Trainer, "step", step)
    with pytest.raises(TrainingFailed, match=r"step 0: .*train.compute.accumulate.* 2 GiB\)$"):
        trained(shards, recipe(), Log(tmp_path))


@pytest.mark.parametrize("fits", [True, False])
def test_a_validation_without_enough_memory_is_tried_again_without_the_graph(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fits: bool
) -> None:
    with_graph: list[bool] = []
    init, validate = Trainer.__init__, Trainer.validate

    def as_on_a_gpu(self: Trainer, *args: Any) -> None:
        init(self, *args)
        self.uses_graph = True

    def validate_in_little_memory(self: Trainer, pairs: Any) -> float:
        with_graph.append(self.graph is not None)
        if with_graph[-1] or not fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nand pages more")
        return validate(self, pairs)

    monkeypatch.setattr(trainer, "gradient_graph", lambda gradients, *_: gradients)
    monkeypatch.setattr(Trainer, "__init__", as_on_a_gpu)
    monkeypatch.setattr(Trainer, "validate", validate_in_little_memory)
    log = Log(tmp_path / "log")
    with nullcontext() if fits else pytest.raises(TrainingFailed, match=r"held_out_tile_size .* 2 GiB\)$"):
        trained(shards, recipe(num_steps=4, validate_every=2), log)
    assert with_graph == ([True, False, False] if fits else [True, False])
    assert [line["step"] for line in log.lines] == ([2, 4] if fits else [])


class NothingReadBack(TorchDispatchMode):
    """Refuses what depends on the content of a tensor: on a GPU the host would wait for it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert not {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags), func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("loss", get_args(LossKind))
@pytest.mark.parametrize("ratio", [None, 25])
@pytest.mark.parametrize(
    ("compute", "optimizer"),
    [
        ({}, "adamw"),
        ({}, "muon"),
        ({"precision": "bfloat16"}, "adamw"),
        ({"accumulate": 2}, "adamw"),
        ({"recompute_activations": True}, "adamw"),
    ],
)
def test_a_step_reads_nothing_back(
    monkeypatch: pytest.MonkeyPatch, loss: str, ratio: int | None, compute: dict[str, Any], optimizer: str
) -> None:
    monkeypatch.setattr(blocks.PReLU, "forward", torch.nn.PReLU.forward)  # as on a GPU; on a CPU it reads its slope
    settings = recipe(loss=loss, compute=COMPUTE | compute, optimizer=optimizer)
    sizes = settings.network.model_dump() | {"sensing_ratio_percent": ratio}
    net = DGUNet.with_seed(DGUNetConfig(image_channels=1 if ratio else 3, **sizes), 0)
    clean = torch.rand(4, net.config.image_channels, 32, 32, generator=torch.Generator().manual_seed(0))
    trainer, batch = Trainer(net, settings, CPU), loader.Batch(clean, clean / 2, ["a"] * 4)
    with NothingReadBack():
        for _ in range(2):
            loss, _ = trainer.step(batch)
        with pytest.raises(AssertionError, match="_local_scalar_dense"):
            float(loss)


@pytest.mark.parametrize("can_be_captured", [True, False])
def test_a_step_without_a_graph_is_the_same_step(monkeypatch: pytest.MonkeyPatch, can_be_captured: bool) -> None:
    def gradient_graph(*_: object) -> None:
        if not can_be_captured:
            raise RuntimeError("operation not permitted when stream is capturing\nand pages more")

    monkeypatch.setattr(trainer, "gradient_graph", gradient_graph)
    lines: list[str] = []
    clean = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    losses = []
    for uses_graph in (True, False):
        training = Trainer(network(recipe()), recipe(), CPU, lines.append)
        assert not training.uses_graph  # on a CPU
        training.uses_graph = uses_graph
        losses.append([float(training.step(loader.Batch(clean, clean / 2, ["a"] * 4))[0]) for _ in range(3)])
    assert losses[0] == losses[1]
    assert not training.uses_graph
    message = "without a CUDA graph, which makes steps of small networks slower: "
    assert lines == ([] if can_be_captured else [message + "operation not permitted when stream is capturing"])


def test_the_share_of_the_host_ends_when_it_has_started_the_work() -> None:
    times = iter([10.0, 13.0, 14.0])
    calls: list[str] = []
    share = share_of_host(lambda: calls.append("start"), lambda: calls.append("wait"), lambda: next(times))
    assert share == 3 / 4
    assert calls == ["wait", "start", "wait"]


@pytest.mark.parametrize("has_units", [False, True])
def test_bfloat16_is_for_gpus_that_have_units_for_it(monkeypatch: pytest.MonkeyPatch, has_units: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation or has_units)
    assert trainer.has_bfloat16_units(torch.device("cuda")) == has_units


def test_equal_runs_have_equal_checkpoints_and_another_seed_has_not(shards: Path, tmp_path: Path) -> None:
    logs = [Log(tmp_path / str(n)) for n in range(2)]
    for log in logs:
        trained(shards, recipe(), log)
    first, second = ((exported(log) / "model.safetensors").read_bytes() for log in logs)
    assert first == second
    assert [{k: v for k, v in line.items() if "second" not in k and "waiting" not in k} for line in logs[0].lines] == [
        {k: v for k, v in line.items() if "second" not in k and "waiting" not in k} for line in logs[1].lines
    ]


def test_it_learns_what_one_pair_shows(tmp_path: Path) -> None:
    clean = pair(0).clean
    for split in ("train", "val"):
        (tmp_path / "s" / split).mkdir(parents=True)
        entry = write_shard(tmp_path / "s" / split / "000000.tar", [Pair("negative", clean, 255 - clean, {})])
        write_index(tmp_path / "s" / split, Index({"online": False, "seed": 1}, (entry,)))
    settings = recipe(batch_size=1, num_steps=300, validate_every=100, learning_rate=1e-2, patch_size=24)
    log = Log(tmp_path / "log")
    trained(tmp_path / "s", settings, log)
    assert log.lines[-1]["val_psnr"] > log.lines[0]["val_psnr"] + 3


def test_the_best_weights_are_exported_and_named_in_the_card(shards: Path, tmp_path: Path) -> None:
    log = Log(tmp_path / "log")
    trained(shards, recipe(num_steps=12, validate_every=3), log)
    best = max(log.lines, key=lambda line: line["val_psnr"])
    assert read_card(exported(log))["provenance"]["metrics"] == {"steps": best["step"], "val_psnr": best["val_psnr"]}


def test_stopped_before_the_first_validation_it_saves_and_goes_on(shards: Path, tmp_path: Path) -> None:
    settings = recipe(num_steps=6, validate_every=3)
    whole, parts = Log(tmp_path / "whole"), Log(tmp_path / "parts")
    trained(shards, settings, whole)
    trained(shards, settings, parts, stop_requested=lambda: True)
    assert read_card(exported(parts))["provenance"]["metrics"] == {"steps": 0}
    trained(shards, settings, parts, resume=parts.checkpoints[-1])
    assert trainer.history(parts.checkpoints[-1]) == trainer.history(whole.checkpoints[-1])


def test_the_psnr_of_an_image_without_any_error_is_a_finite_number(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Log(tmp_path / "log")
    monkeypatch.setattr(trainer, "psnr", lambda restored, clean: torch.tensor(math.inf))
    trained(shards, recipe(num_steps=3, validate_every=3), log)
    assert log.lines[-1]["val_psnr"] == metrics.HIGHEST_PSNR


def test_a_validation_that_is_not_a_number_stops_training(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "psnr", lambda restored, clean: torch.tensor(math.nan))
    with pytest.raises(TrainingFailed, match=r"step 3: .* not a number"):
        trained(shards, recipe(num_steps=3, validate_every=3), Log(tmp_path / "log"))


def with_nan(shards: Path, settings: Train, steps: set[int]) -> dict[str, Callable[..., Any]]:
    """As `data`, but the degraded patches of some steps are not numbers."""
    inputs = data(shards, settings)

    def batches(first_step: int) -> Iterator[loader.Batch]:
        for step, batch in enumerate(inputs["batches"](first_step), first_step):
            yield batch._replace(degraded=batch.degraded * math.nan) if step in steps else batch

    return {**inputs, "batches": batches}


def test_a_step_that_is_not_finite_is_skipped_and_counted(shards: Path, tmp_path: Path) -> None:
    settings, log = recipe(num_steps=8, validate_every=8), Log(tmp_path / "log")
    net = network(settings)
    loop.fit(net, settings, WorkerContext(report=log.report), **with_nan(shards, settings, {3}))
    assert log.lines[-1]["skipped_steps"] == 1
    assert math.isfinite(log.lines[-1]["loss"])
    assert all(torch.isfinite(tensor).all() for tensor in weights(net))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_skipped_step_leaves_weights_and_optimizers_as_they_were(
    shards: Path, tmp_path: Path, optimizer: str
) -> None:
    settings = recipe(optimizer=optimizer, weight_decay=0.1)

    def states() -> list[torch.Tensor]:
        found = [state for part in training.optimizers for state in part.state.values()]
        return [values[name].clone() for values in found for name in ("momentum", "exp_avg", "step") if name in values]

    training = Trainer(network(settings), settings, CPU)
    steps = with_nan(shards, settings, {1})["batches"](0)
    training.step(next(steps))
    before = [tensor.clone() for tensor in weights(training.network)]
    moments = states()
    training.step(next(steps))
    assert all(torch.equal(a, b) for a, b in zip(before, weights(training.network), strict=True))
    assert len(moments) >= len(before)
    assert all(torch.equal(a, b) for a, b in zip(moments, states(), strict=True))
    training.step(next(steps))
    assert not any(torch.equal(a, b) for a, b in zip(moments, states(), strict=True))


def test_too_many_steps_in_a_row_that_are_not_finite_stop_training(shards: Path, tmp_path: Path) -> None:
    settings, log = recipe(num_steps=8, max_skipped_steps=1), Log(tmp_path / "log")
    files: list[tuple[str, bytes]] = []

    def keep_file(name: str, content: bytes) -> str:
        files.append((name, content))
        return "s3://bucket/batch.pt"

    with pytest.raises(TrainingFailed, match=r"step 3: .*2 steps in a row.*s3://bucket/batch.pt.*pair00") as failure:
        context = WorkerContext(report=log.report, keep_file=keep_file)
        loop.fit(network(settings), settings, context, **with_nan(shards, settings, {2, 3}))
    assert str(failure.value).count("pair00") == settings.batch_size
    assert files[0][0] == "batch-of-step-3-worker-0.pt"
    batch = torch.load(io.BytesIO(files[0][1]), weights_only=True)
    assert batch["clean"].shape == (4, 3, 16, 16)
    assert batch["degraded"].isnan().all()
    assert all(key in str(failure.value) for key in batch["keys"])


def test_the_learning_rate_warms_up_and_falls_to_its_final_value() -> None:
    settings = recipe(num_steps=100, warmup_steps=10, learning_rate=1e-2, final_learning_rate=1e-4)
    rates = [learning_rate(step, settings) for step in range(100)]
    assert rates[0] == pytest.approx(1e-3)
    assert rates[9] == pytest.approx(1e-2)
    assert rates[-1] == pytest.approx(1e-4)
    assert all(a >= b for a, b in pairwise(rates[10:]))


def test_a_run_without_validation_pairs_is_refused(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"prepare\.split\.val"):
        loop.fit(
            network(recipe()), recipe(), WorkerContext(), **data(shards, recipe()) | {"validation": lambda: iter(())}
        )


COMPUTE = {"precision": "float32", "accumulate": 1, "recompute_activations": False, "compile": False}


def losses_of(shards: Path, folder: Path, loss: str = "charbonnier", **compute: Any) -> list[float]:
    log = Log(folder)
    trained(shards, recipe(num_steps=6, validate_every=2, loss=loss, compute=COMPUTE | compute), log)
    return [line["loss"] for line in log.lines]


def test_a_batch_in_parts_is_the_same_step(shards: Path, tmp_path: Path) -> None:
    whole = losses_of(shards, tmp_path / "1")
    assert losses_of(shards, tmp_path / "3", accumulate=3) == pytest.approx(whole, rel=1e-4)  # 4 pairs: 2, 2
    assert losses_of(shards, tmp_path / "9", accumulate=9) == pytest.approx(whole, rel=1e-4)  # more than there are


def test_recomputed_activations_are_the_same_activations(shards: Path, tmp_path: Path) -> None:
    assert losses_of(shards, tmp_path / "1", recompute_activations=True) == losses_of(shards, tmp_path / "0")


COMPILED = """
    import sys
    from pathlib import Path
    from test_loop import losses_of
    print(*losses_of(Path(sys.argv[1]), Path(sys.argv[2]), "charbonnier_edge", compile=True))
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++")
def test_a_compiled_step_is_the_same_step(shards: Path, tmp_path: Path) -> None:
    # In a process of its own: the checks of array shapes that run in tests cannot be compiled.
    environment = os.environ | {
        "PYTHONPATH": pythonpath(__file__),
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "compiled"),
    }
    command = [sys.executable, "-c", textwrap.dedent(COMPILED), str(shards), str(tmp_path / "1")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert any((tmp_path / "compiled").iterdir())
    compiled = [float(loss) for loss in done.stdout.split()]
    assert compiled == pytest.approx(losses_of(shards, tmp_path / "0", "charbonnier_edge"), rel=1e-3)


SHARED = RECIPE["network"] | {"num_stages": 4, "share_stages": True}  # two of the four stages are one module


def _as_worker(rank: int, num_workers: int, shards: str, out: str, resume: str | None = None) -> None:
    """Train as one of several workers, which gloo connects through a file.

    With two workers each takes its part of the batch in parts; with two and three activations are recomputed.
    """
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{out}/meeting{num_workers}", rank=rank, world_size=num_workers)
    compute = COMPUTE | {"accumulate": 2 if num_workers == 2 else 1, "recompute_activations": num_workers in (2, 3)}
    settings = recipe(num_steps=6, validate_every=2, compute=compute, network=SHARED)
    patches = dataset.PatchDataset(Path(shards) / "train", settings.batch_size, settings.patch_size, 1)
    lines: list[dict[str, float]] = []
    context = WorkerContext(
        rank=rank,
        world_size=num_workers,
        resume=nullcontext(resume and Path(resume)),
        report=lambda metrics, folder: lines.append(metrics),
    )
    loop.fit(
        network(settings),
        settings,
        context,
        batches=lambda first: loader.batches(
            patches,
            rank=rank,
            world_size=num_workers,
            first_step=first,
            num_steps=6,
            num_loader_processes=0,
            pin_memory=False,
        ),
        validation=lambda: dataloader_pairs.pairs(Path(shards) / "val", rank, num_workers),
    )
    if rank == 0:
        torch.save([(line["loss"], line["val_psnr"]) for line in lines], f"{out}/losses{num_workers}.pt")
    dist.destroy_process_group()


def run_workers(num_workers: int, *arguments: str) -> None:
    """Run `_as_worker` in so many processes; they are forked from one that has imported torch, once for all tests."""
    torch.multiprocessing.get_context("forkserver").set_forkserver_preload(["pipeline.training.loop", "pytest"])
    torch.multiprocessing.start_processes(_as_worker, (num_workers, *arguments), num_workers, start_method="forkserver")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_any_number_of_workers_has_the_same_losses(shards: Path, tmp_path: Path) -> None:
    losses = {}
    for num_workers in (1, 2, 3, 4):
        run_workers(num_workers, str(shards), str(tmp_path))
        losses[num_workers] = torch.load(tmp_path / f"losses{num_workers}.pt")
    for num_workers in (2, 3, 4):
        for several, alone in zip(losses[num_workers], losses[1], strict=True):
            assert several == pytest.approx(alone, rel=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("num_workers", [2, 4])
def test_a_run_goes_on_with_another_number_of_workers(shards: Path, tmp_path: Path, num_workers: int) -> None:
    log, calls = Log(tmp_path), iter(range(100))
    settings = recipe(num_steps=6, validate_every=2, compute=COMPUTE, network=SHARED)
    trained(shards, settings, log)
    part = Log(tmp_path / "part")
    trained(shards, settings, part, stop_requested=lambda: next(calls) >= 2)  # after step 3
    run_workers(num_workers, str(shards), str(tmp_path), str(part.checkpoints[-1]))
    found = torch.load(tmp_path / f"losses{num_workers}.pt")
    assert len(found) == 2  # of steps 4 and 6
    for several, alone in zip(found, log.lines[1:], strict=True):
        assert several == pytest.approx((alone["loss"], alone["val_psnr"]), rel=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_largest_published_network_steps_whichever_way_it_is_computed() -> None:
    sizes = {"width": 96, "growth": 48, "head_growth": 0, "num_stages": 7, "share_stages": False}
    clean = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    batch = loader.Batch(clean, clean / 2, ["a", "b"])
    losses = {}
    for name, way in (
        ("plain", {}),
        ("recomputed", {"recompute_activations": True}),
        ("in parts", {"accumulate": 2}),
        ("bfloat16", {"precision": "bfloat16", "recompute_activations": True}),
    ):
        settings = recipe(loss="charbonnier_edge", batch_size=2, compute=COMPUTE | way)
        settings = settings.model_copy(update={"network": settings.network.model_copy(update=sizes)})
        large = Trainer(network(settings), settings, CPU)
        assert sum(parameter.numel() for parameter in large.network.parameters()) > 69e6
        losses[name] = [float(large.step(batch)[0]) for _ in range(2)]
    assert losses["recomputed"] == losses["plain"]
    assert losses["in parts"] == pytest.approx(losses["plain"], rel=1e-4)
    assert losses["bfloat16"] == pytest.approx(losses["plain"], rel=0.05)


def test_a_network_that_makes_images_worse_is_not_stored(shards: Path, tmp_path: Path) -> None:
    """Its learning rate is far too large; the network before training, which changes almost nothing, is stored."""
    settings, log = recipe(num_steps=4, validate_every=2, learning_rate=0.1), Log(tmp_path / "log")
    shown: list[dict[str, float]] = []
    trained(shards, settings, log, progress=lambda step, stats: shown.append(dict(stats)))
    found = trainer.read_progress(log.checkpoints[-1])
    assert all(entry["val_psnr"] < found.degraded_psnr - 1 for entry in found.history)
    assert (found.best_step, found.best_psnr) == (0, -math.inf)
    stored = load_model(exported(log))
    assert all(torch.equal(*pair) for pair in zip(weights(stored), weights(network(settings)), strict=True))
    assert read_card(exported(log))["provenance"]["metrics"] == {"steps": 0}
    assert shown[-1]["val_psnr_degraded"] == found.degraded_psnr


def test_the_degraded_images_are_measured_as_the_restored_ones(shards: Path) -> None:
    settings = recipe()
    training = Trainer(network(settings), settings, CPU)
    for stage in training.averaged.stages():  # a network that returns its input
        end = stage.tail if isinstance(stage, LastStage) else stage.proximal.end.correct
        end.weight.zero_()
    with_pairs = data(shards, settings)["validation"]
    assert training.validate(with_pairs()) == training.progress.degraded_psnr
    training.update_best(training.progress.degraded_psnr)
    assert training.progress.best_step == 0
    training.progress.step = 5
    training.update_best(training.progress.degraded_psnr + 0.01)
    assert training.progress.best_step == 5


def test_progress_shows_the_last_psnr_and_the_best(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([30.0, 28.5, 29.25])
    monkeypatch.setattr(Trainer, "validate", lambda self, pairs: next(scores))
    monkeypatch.setattr(progress, "PROGRESS_SECONDS", 0.0)
    shown: dict[int, tuple[float, float]] = {}
    trained(
        shards, recipe(num_steps=6, validate_every=2), Log(tmp_path / "log"),
        progress=lambda step, stats: shown.update({step: (stats["val_psnr"], stats["best_val_psnr"])}),
    )  # fmt: skip
    assert all(math.isnan(value) for value in shown.pop(1))
    assert shown == {2: (30.0, 30.0), 3: (30.0, 30.0), 4: (28.5, 30.0), 5: (28.5, 30.0), 6: (29.25, 30.0)}
