"""Metrics of a training run for Prometheus: Ray exports them on each node as ray_dgunet_…, with the label `run`.

It imports nothing from the pipeline, so that the actor of `run_channel` starts quickly.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

from ray.util.metrics import Gauge

LEAST_SECONDS_UNTIL_STANDING = 60.0  # without progress; a step, or its report, may take long
DESCRIPTIONS = {
    "dgunet_images_per_second": "Images per second of all workers together, since they started; 0 without workers.",
    "dgunet_waiting_share": "Share of its time that worker 0 has waited for batches, since it started.",
    "dgunet_loss": "Loss of the last step not skipped; not a number if all since the last validation were skipped.",
    "dgunet_val_psnr": "PSNR of the last validation in dB.",
    "dgunet_lost_workers": "Workers that died, hung or were lost with their node, since the driver started.",
    "dgunet_checkpoint_age_seconds": "Seconds since the last checkpoint was stored, or since the driver started.",
}
STATS = {  # of `ProgressMeter.stats`
    "loss": "dgunet_loss",
    "val_psnr": "dgunet_val_psnr",
    "images_per_second": "dgunet_images_per_second",
    "waiting_for_data": "dgunet_waiting_share",
}


class RunMetrics:
    """The gauges of one run, whose name is the value of their label `run`.

    Ray exports a gauge only if it was set since the last export, about every ten seconds, and forgets it soon after:
    `refresh` sets all of them again. `dgunet_lost_workers` is a gauge, because a counter would outlive the run.
    """

    def __init__(self, run: str) -> None:
        self.gauges = {name: Gauge(name, text, tag_keys=("run",)) for name, text in DESCRIPTIONS.items()}
        for gauge in self.gauges.values():
            gauge.set_default_tags({"run": run})
        self.values = {"dgunet_lost_workers": 0.0}
        self.last_checkpoint = self.last_progress = time.monotonic()
        self.seconds_until_standing = LEAST_SECONDS_UNTIL_STANDING

    def add_progress(self, stats: Mapping[str, float]) -> None:
        """Update the gauges from `stats`; a validation PSNR that is not a number is not known yet."""
        now = time.monotonic()
        # Three times the last pause: the speed must not fall to 0 during a step that takes minutes.
        self.seconds_until_standing = max(LEAST_SECONDS_UNTIL_STANDING, 3 * (now - self.last_progress))
        self.last_progress = now
        known = {name for name in STATS.keys() & stats.keys() if name != "val_psnr" or not math.isnan(stats[name])}
        self.values |= {STATS[name]: float(stats[name]) for name in known}

    def add_checkpoint(self) -> None:
        """Record that a checkpoint was stored."""
        self.last_checkpoint = time.monotonic()

    def add_lost_workers(self, number: int) -> None:
        """Count workers that were lost."""
        self.values["dgunet_lost_workers"] += number

    def stop_workers(self) -> None:
        """Record that no worker runs: the speed is 0."""
        self.values["dgunet_images_per_second"] = 0.0

    def refresh(self) -> None:
        """Set all gauges; call it about every second."""
        now = time.monotonic()
        if now - self.last_progress > self.seconds_until_standing:
            self.stop_workers()
        self.values["dgunet_checkpoint_age_seconds"] = now - self.last_checkpoint
        for name, value in self.values.items():
            self.gauges[name].set(value)
