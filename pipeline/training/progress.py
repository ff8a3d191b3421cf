"""Measures the progress of a training run: speed, time left, time spent waiting for data."""

from __future__ import annotations

import math
import time
from contextlib import AbstractContextManager

from pipeline.training.settings import Train
from pipeline.training.trainer import Progress

PROGRESS_SECONDS = 2.0
SECONDS_BETWEEN_SYNCS = 1.0


class ProgressMeter:
    """Measures times for display; they do not influence training."""

    def __init__(self, first_step: int) -> None:
        self.first_step, self.shown, self.waited = first_step, 0.0, 0.0
        self.started = self.saved = self.synced = time.monotonic()
        self.last_sync = first_step
        self.steady_since: tuple[float, int] | None = None  # time and step when start-up was over

    def waiting(self) -> AbstractContextManager[None]:
        """Return a context manager that measures time spent waiting for data."""
        return _Stopwatch(self)

    def due(self) -> bool:
        """Return whether PROGRESS_SECONDS have passed since it last returned True."""
        now = time.monotonic()
        if now - self.shown < PROGRESS_SECONDS:
            return False
        self.shown = now
        return True

    def steps_to_next_sync(self, step: int, most: int) -> int:
        """Return how many steps take SECONDS_BETWEEN_SYNCS at the speed since the last sync, between 1 and `most`."""
        now = time.monotonic()
        if self.steady_since is None:
            self.steady_since = now, step
        speed = (step - self.last_sync) / max(now - self.synced, 1e-9)
        self.synced, self.last_sync = now, step
        return max(1, min(most, int(speed * SECONDS_BETWEEN_SYNCS)))

    def seconds_unsaved(self) -> float:
        """Return the seconds since the last checkpoint."""
        return time.monotonic() - self.saved

    def stats(self, progress: Progress, recipe: Train) -> dict[str, float]:
        """Return the numbers to display.

        Keys: `loss` of the last step; those of `val_stats`; `images_per_second`; `seconds_left` (not a number while it
        is not known, see `_seconds_left`); `waiting_for_data`, a share of the time.
        """
        step, seconds = progress.step, max(time.monotonic() - self.started, 1e-9)
        steps_per_second = (step - self.first_step) / seconds
        return {
            "loss": progress.losses[-1] if progress.losses else math.nan,
            **val_stats(progress),
            "images_per_second": steps_per_second * recipe.batch_size,
            "seconds_left": self._seconds_left(step, recipe.num_steps),
            "waiting_for_data": self.waited / seconds,
        }

    def _seconds_left(self, step: int, num_steps: int) -> float:
        """Return the remaining seconds at the speed since the first sync; not a number before the first step after it.

        The first step compiles or captures the network and starts the processes of the loader; no later step does. A
        run may be resumed at a step where a validation is due: no step was made then.
        """
        if self.steady_since is None or step <= self.steady_since[1]:
            return 0.0 if step >= num_steps else math.nan
        since, first = self.steady_since
        return (num_steps - step) * (time.monotonic() - since) / (step - first)


class _Stopwatch(AbstractContextManager[None]):
    def __init__(self, meter: ProgressMeter) -> None:
        self.meter = meter

    def __enter__(self) -> None:
        self.started = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.meter.waited += time.monotonic() - self.started


def val_stats(progress: Progress) -> dict[str, float]:
    """Return the mean PSNR in dB of the val split: `val_psnr` of the last validation, `best_val_psnr` of the best one
    (−inf: none was above `val_psnr_degraded`), `val_psnr_degraded` of the degraded images (−inf: of a sensing network,
    which has none). Not a number before the first validation.
    """
    if not progress.history:
        return dict.fromkeys(("val_psnr", "best_val_psnr", "val_psnr_degraded"), math.nan)
    last = progress.history[-1]["val_psnr"]
    return {"val_psnr": last, "best_val_psnr": progress.best_psnr, "val_psnr_degraded": progress.degraded_psnr}
