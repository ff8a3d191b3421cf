"""The sections `evaluate` and `benchmarks` of params.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, PositiveInt, field_validator, model_validator

from dgunet.config import LocalStatistics, StatisticsKind
from pipeline.config.params import ParamsError, Place, Section, default_section, validated_merge
from pipeline.degradations.compose import Degradation
from pipeline.evaluation.baselines import Baseline
from pipeline.evaluation.protocol import Protocol

BENCHMARKS = "benchmarks"  # section of params.yaml


class Windows(Section):
    """Statistics over windows that are tried on the val split: side in pixels, and of which modules."""

    window: int
    of: list[StatisticsKind]

    @model_validator(mode="after")
    def _are_valid(self) -> Windows:
        self.local_statistics()
        return self

    def local_statistics(self) -> LocalStatistics:
        """Return them as the network takes them."""
        return LocalStatistics(self.window, tuple(self.of))


class Evaluate(Section):
    """How a task's model is measured: on its own test split, and on benchmarks, named as in `benchmarks`.

    local_statistics: the windows to try. If some restore the val split better than the statistics of the whole image,
    the best one becomes part of the registered model. The report lists all of them.
    """

    protocol: Protocol
    baseline: Annotated[Baseline, Field(discriminator="kind")]
    gallery_images: PositiveInt
    local_statistics: list[Windows]
    benchmarks: list[str]

    @field_validator("benchmarks")
    @classmethod
    def _are_named_once(cls, names: list[str]) -> list[str]:
        if len(set(names)) != len(names):
            raise ValueError("a benchmark is named twice")
        return names


class BenchmarkSettings(Section):
    """One benchmark of the section `benchmarks`; its `protocol` is merged with `defaults.evaluate.protocol`.

    dataset, split: a published set of pipeline/sources/datasets.yaml; its split may be omitted where it has one.
    clean, degraded: in place of `dataset`, folders or archives below DGUNET_DATA, absolute paths, URLs, or patterns of
    names as a source of kind `pairs` takes them.

    Clean images without partners are degraded by `degradation`; without that, by the task's own degradation.
    """

    dataset: str | None = None
    split: str | None = None
    clean: str | None = None
    degraded: str | None = None
    degradation: Degradation | None = None
    protocol: Protocol

    @model_validator(mode="after")
    def _images_come_from_one_place(self) -> BenchmarkSettings:
        if (self.dataset is None) == (self.clean is None):
            raise ValueError("give dataset or clean")
        if self.dataset is not None and self.degraded is not None:
            raise ValueError("a dataset has its own degraded images: remove degraded")
        if self.dataset is None and self.split is not None:
            raise ValueError("split is that of a dataset")
        return self

    @model_validator(mode="after")
    def _degraded_images_come_from_one_source(self) -> BenchmarkSettings:
        if self.degraded is not None and self.degradation is not None:
            raise ValueError("give degraded or degradation, not both")
        return self


def benchmark_settings(params: Mapping[str, Any], name: str) -> BenchmarkSettings:
    """Return a benchmark's entry of params.yaml. Raises ParamsError if it is missing or not valid."""
    benchmarks = params.get(BENCHMARKS)
    if not isinstance(benchmarks, dict) or name not in benchmarks:
        there = ", ".join(map(str, benchmarks)) if isinstance(benchmarks, dict) else "none"
        raise ParamsError(f"there is no benchmark `{name}` in params.yaml; available: {there}")
    defaults = default_section(params, "evaluate")
    shared = Place(defaults.name, {"protocol": defaults.value.get("protocol")})
    return validated_merge(Place(f"{BENCHMARKS}.{name}", benchmarks[name]), shared, BenchmarkSettings)
