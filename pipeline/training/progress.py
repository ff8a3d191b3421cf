"""Measures the progress of a training run: speed, time left, time spent waiting for data."""

from __future__ import annotations

import math
import time
from contextlib import AbstractContextManager

from pipeline.training.settings import Train
from pipeline.training.trainer import Progress

PROGRESS_SECONDS = 2.0
SECONDS_BETWEEN_LOOKS = 1.0


class ProgressMeter:
    """Times for a person to watch; they change nothing."""

    def __init__(self, first_step: int) -> None:
        self.first_step, self.shown, self.waited = first_step, 0.0, 0.0
        self.started = self.saved = self.looked = time.monotonic()
        self.looked_at = first_step

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

    def steps_to_next_look(self, step: int, most: int) -> int:
        """Return how many steps, at the pace since the last look, take SECONDS_BETWEEN_LOOKS, between 1 and `most`."""
        now = time.monotonic()
        pace = (step - self.looked_at) / max(now - self.looked, 1e-9)
        self.looked, self.looked_at = now, step
        return max(1, min(most, int(pace * SECONDS_BETWEEN_LOOKS)))

    def seconds_unsaved(self) -> float:
        """Return the seconds since the last checkpoint."""
        return time.monotonic() - self.saved

    def figures(self, progress: Progress, recipe: Train) -> dict[str, float]:
        """Return loss, PSNR, speed in images per second, seconds left and the share of time spent waiting for data."""
        step, seconds = progress.step, max(time.monotonic() - self.started, 1e-9)
        steps_per_second = (step - self.first_step) / seconds
        return {
            "loss": progress.losses[-1] if progress.losses else math.nan,
            "val_psnr": progress.best_psnr,
            "images_per_second": steps_per_second * recipe.batch_size,
            "seconds_left": (recipe.num_steps - step) / max(steps_per_second, 1e-9),
            "waiting_for_data": self.waited / seconds,
        }


class _Stopwatch(AbstractContextManager[None]):
    def __init__(self, meter: ProgressMeter) -> None:
        self.meter = meter

    def __enter__(self) -> None:
        self.started = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.meter.waited += time.monotonic() - self.started
