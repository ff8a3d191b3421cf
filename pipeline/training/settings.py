"""The section `train` of params.yaml."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from pipeline.config.params import Fraction, Section


class Network(Section):
    """Sizes of the DGUNet, as `dgunet.DGUNetConfig` (image channels follow from `synthesize.channels`)."""

    width: PositiveInt
    growth: Annotated[int, Field(ge=0)]
    head_growth: Annotated[int, Field(ge=0)]
    num_stages: Annotated[int, Field(ge=2)]
    share_stages: bool
    sensing_ratio_percent: Annotated[float, Field(gt=0, le=100)] | None
    full_image: bool


class Compute(Section):
    """How a training step is computed: its speed and memory, its result but for rounding.

    precision: `bfloat16` is autocast where the device has units for it, float32 elsewhere.
    accumulate: a worker's share of the batch goes through the network in so many parts: less memory, the same step.
    recompute_activations: those inside of a stage are computed again in the backward pass instead of kept (activation
        checkpointing, Chen et al. 2016): memory of one stage instead of all, for a second forward pass.
    compile: by torch.compile; needs a C++ compiler, on a GPU Triton, and some minutes at the start.
    """

    precision: Literal["float32", "bfloat16"]
    accumulate: PositiveInt
    recompute_activations: bool
    compile: bool


class Train(Section):
    """The recipe; `batch_size` is global, each worker's share is derived.

    mixup_alpha: each pair becomes w·itself + (1 − w)·another of its batch, w ~ Beta(α, α) (Zhang et al., ICLR 2018);
    0 does not mix.
    """

    network: Network
    loss: Literal["charbonnier", "charbonnier_edge", "charbonnier_clamped", "mse_clamped"]
    mixup_alpha: Annotated[float, Field(ge=0)]
    patch_size: Annotated[int, Field(ge=16)]
    batch_size: PositiveInt
    num_steps: PositiveInt
    warmup_steps: Annotated[int, Field(ge=0)]
    learning_rate: PositiveFloat
    final_learning_rate: PositiveFloat
    weight_decay: Annotated[float, Field(ge=0)]
    gradient_clip: PositiveFloat
    average_decay: Fraction
    validate_every: PositiveInt
    max_skipped_steps: Annotated[int, Field(ge=0)]
    compute: Compute

    @model_validator(mode="after")
    def _schedule_fits(self) -> Train:
        if self.warmup_steps >= self.num_steps:
            raise ValueError(f"warmup_steps ({self.warmup_steps}) must be smaller than num_steps ({self.num_steps})")
        if self.final_learning_rate > self.learning_rate:
            raise ValueError("final_learning_rate must not exceed learning_rate")
        return self
