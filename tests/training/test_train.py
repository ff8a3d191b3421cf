"""What the command `train` shows while it trains."""

import math

import pytest

from pipeline.train import _Display


@pytest.mark.parametrize(
    ("last", "best", "expected"),
    [
        (math.nan, math.nan, "loss 0.1000, 12 images/s, 1:05 left"),
        (30.0, 30.0, "loss 0.1000, val 30.00 dB, 12 images/s, 1:05 left"),
        (28.5, 30.0, "loss 0.1000, val 28.50 dB (best 30.00), 12 images/s, 1:05 left"),
        (28.5, -math.inf, "loss 0.1000, val 28.50 dB (degraded 29.00), 12 images/s, 1:05 left"),
    ],
)
def test_a_line_of_progress_has_the_last_psnr_and_a_better_one_before(
    capsys: pytest.CaptureFixture[str], last: float, best: float, expected: str
) -> None:
    display = _Display("denoise", 100)
    val = {"val_psnr": last, "best_val_psnr": best, "val_psnr_degraded": 29.0}
    stats = {"loss": 0.1, **val, "images_per_second": 12.0, "seconds_left": 65.0}
    display.show(7, stats)
    display.close()
    assert capsys.readouterr().err.splitlines()[-1] == f"train denoise: step 7/100, {expected}"


@pytest.mark.parametrize(
    ("images", "left", "expected"),
    [
        (12.0, 59.9, "loss 0.1000, 12 images/s, 0:59 left"),
        (12.0, 3 * 3600 + 65.0, "loss 0.1000, 12 images/s, 3:01:05 left"),
        (12.0, math.nan, "loss 0.1000, 12 images/s"),
        (0.0, math.nan, "loss 0.1000"),
        (0.0, math.inf, "loss 0.1000"),
    ],
)
def test_a_line_of_progress_leaves_out_what_is_not_known_after_a_resume(
    capsys: pytest.CaptureFixture[str], images: float, left: float, expected: str
) -> None:
    display = _Display("denoise", 100)
    stats = {"loss": 0.1, "val_psnr": math.nan, "best_val_psnr": math.nan}
    display.show(7, stats | {"images_per_second": images, "seconds_left": left})
    display.close()
    assert capsys.readouterr().err.splitlines()[-1] == f"train denoise: step 7/100, {expected}"
