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

    local_statistics: the windows to try. Those that restore the val split better than the statistics of the whole image
    become part of the model; the others are measured and forgotten.
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

    clean, degraded: folders or archives below DGUNET_DATA, absolute paths, URLs, or patterns of names as a source of
    kind `pairs` takes them. Without `degraded` the clean images are degraded by `degradation`; without both, by the
    task's own degradation.
    """

    clean: str
    degraded: str | None = None
    degradation: Degradation | None = None
    protocol: Protocol

    @model_validator(mode="after")
    def _degraded_images_come_from_one_source(self) -> BenchmarkSettings:
        if self.degraded is not None and self.degradation is not None:
            raise ValueError("give degraded or degradation, not both")
        return self


def benchmark_settings(params: Mapping[str, Any], name: str) -> BenchmarkSettings:
    """Return a benchmark's entry of params.yaml; ParamsError if there is none of that name, or it is not valid."""
    benchmarks = params.get(BENCHMARKS)
    if not isinstance(benchmarks, dict) or name not in benchmarks:
        there = ", ".join(map(str, benchmarks)) if isinstance(benchmarks, dict) else "none"
        raise ParamsError(f"there is no benchmark `{name}` in params.yaml; there is: {there}")
    defaults = default_section(params, "evaluate")
    shared = Place(defaults.name, {"protocol": defaults.value.get("protocol")})
    return validated_merge(Place(f"{BENCHMARKS}.{name}", benchmarks[name]), shared, BenchmarkSettings, ("clean",))
