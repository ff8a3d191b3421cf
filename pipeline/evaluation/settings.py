"""The section `evaluate` of params.yaml."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveInt

from pipeline.config.params import Section
from pipeline.evaluation.baselines import Baseline
from pipeline.evaluation.benchmarks import Benchmark
from pipeline.evaluation.protocol import Protocol


class Evaluate(Section):
    """How a task's model is judged: on its own test split, and on benchmarks that are skipped where they are absent."""

    protocol: Protocol
    baseline: Annotated[Baseline, Field(discriminator="kind")]
    gallery_images: PositiveInt
    benchmarks: list[Benchmark]
