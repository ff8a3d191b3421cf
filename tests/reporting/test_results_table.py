"""The table that `make results` writes holds every number with what decided it."""

import torch
from factories import small_params

from benchmarks.tasks import Report, page, training_operations
from dgunet.config import DGUNetConfig
from pipeline.config.params import merged_section, validated
from pipeline.training.settings import Train

CARD = {"weights_sha256": "f" * 64, "provenance": {"commit": "abc", "data": "d" * 64}}
INTERVAL = {"low": 0.5, "high": 1.5, "method": "percentile bootstrap", "num_resamples": 10, "seed": 0}


def numbers(restored: float, interval: dict | None) -> dict:
    kinds = {"degraded": 20.0, "baseline": 21.0, "restored": restored}
    found = {kind: {"psnr": psnr, "ssim": 0.5} for kind, psnr in kinds.items()}
    return {**found, "gain_db": restored - 20, "gain_interval": interval, "num_images": 3}


def test_each_test_set_has_a_row_with_interval_worst_and_best_image_protocol_and_checksum() -> None:
    metrics = numbers(25.0, None) | {
        "benchmarks": {"Set5": numbers(21.0, INTERVAL)},
        "not_measured": {"CBSD68": {"reason": "3 images show scenes of it"}},
    }
    sets = {name: {"protocol": f"as {name}", "sha256": name[0] * 64} for name in ("test split", "Set5")}
    measurement = {
        "commit": "def+changes",
        "hardware": "a CPU",
        "packages": {"torch": "2"},
        "sets": sets,
    }
    rows = [
        ("test", "a", 4.0),
        ("test", "b", 6.0),
        ("Set5", "woman", 1.0),
        ("Set5", "bird", -0.25),
        ("Set5", "c", 2.25),
    ]
    images = [{"set": name, "key": key, "gain_db": str(gain)} for name, key, gain in rows]
    lines = page("derain", None, Report(metrics, measurement, images), CARD, baseline="median", operations=1.25)
    for line in (
        "Written by `make results TASK=derain`. Mean PSNR in dB and SSIM; gains in dB over the degraded image.",
        "| test split | 3 | 20.00 / 0.5000 | 21.00 / 0.5000 | 25.00 / 0.5000 | +5.00 | one photograph: none "
        "| +4.00 (a) | +6.00 (b) |",
        "| Set5 | 3 | 20.00 / 0.5000 | 21.00 / 0.5000 | 21.00 / 0.5000 | +1.00 | +0.50 to +1.50 | -0.25 (bird) "
        "| +2.25 (c) |",
        "| CBSD68 | not measured: 3 images show scenes of it |",
        "- Measured at commit def+changes, on a CPU; torch 2.",
        "- Training: 1.2 TFLOP.",
        "- Intervals: percentile bootstrap, 10 resamples, seed 0.",
        f"| Set5 | as Set5 | {'S' * 64} |",
    ):
        assert line in lines.splitlines()
    assert "MODEL=models:/derain@champion`" in page(
        "derain", "models:/derain@champion", Report(metrics, measurement, images), CARD, baseline="", operations=None
    )


def test_training_operations_grow_with_steps_and_batch() -> None:
    recipe = validated(merged_section(small_params(), "denoise", "train"), Train)
    config = {"config": DGUNetConfig(image_channels=3, **recipe.network.model_dump()).__dict__}
    once = training_operations(config, recipe)
    assert once > 0
    more = recipe.model_copy(update={"num_steps": 3 * recipe.num_steps, "batch_size": 2 * recipe.batch_size})
    torch.testing.assert_close(training_operations(config, more), 6 * once)
