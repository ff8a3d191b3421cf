"""The section `train` of params.yaml."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from dgunet.config import DGUNetConfig, LossKind
from pipeline.config.params import Fraction, Section


class Network(Section):
    """Sizes of the DGUNet: the fields of `dgunet.DGUNetConfig`, which says what is allowed.

    `image_channels` is not among them: it follows from `synthesize.channels`.
    """

    width: int
    growth: int
    head_growth: int
    num_stages: int
    share_stages: bool
    sensing_ratio_percent: float | None
    full_image: bool

    @field_validator("*")
    @classmethod
    def _is_allowed(cls, value: object, info: Any) -> object:
        name = str(info.field_name)
        sensing = {"image_channels": 1, "sensing_ratio_percent": 100}  # with these all other fields are free
        try:
            DGUNetConfig(**{**sensing, name: value})  # type: ignore[arg-type]
        except ValueError as error:
            raise ValueError(str(error).removeprefix(f"{name}: ")) from None
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Network:
        DGUNetConfig(image_channels=3 if self.sensing_ratio_percent is None else 1, **self.model_dump())
        return self


class Compute(Section):
    """How a training step is computed. This changes speed and memory; results differ only by rounding.

    Attributes:
        precision: `bfloat16` uses autocast on devices that compute faster in it; others compute in float32.
        accumulate: number of parts in which a worker's part of the batch goes through the network: less memory, the
            same step.
        recompute_activations: compute activations inside a stage again in the backward pass instead of storing them
            (activation checkpointing, Chen et al. 2016): memory of one stage instead of all, a second forward pass.
        compile: compile the stages with torch.compile; needs a C++ compiler, on a GPU Triton, and a minute or more at
            the start. Without it, a single worker on a GPU uses a CUDA graph where this gains time.
    """

    precision: Literal["float32", "bfloat16"]
    accumulate: PositiveInt
    recompute_activations: bool
    compile: bool


class OperatorLoss(Section):
    """Weights of the loss on the learned Φ and Φᵀ (`dgunet.operator_loss`); 0 and 0 as published.

    Attributes:
        degradation: of the term that trains Φ to be the degradation.
        adjoint: of the term that trains Φᵀ to be the transpose of Φ.
    """

    degradation: Annotated[float, Field(ge=0)]
    adjoint: Annotated[float, Field(ge=0)]


class Train(Section):
    """How a network is trained.

    Attributes:
        operator_loss: for blind networks; a sensing network, whose Φ is known, ignores it.
        optimizer: `muon` makes the steps of the convolutions' weights orthogonal (pipeline/training/optimizers.py).
        batch_size: images of a batch over all workers.
        mixup_alpha: each pair becomes w·itself + (1 − w)·another of its batch, w ~ Beta(α, α) (Zhang et al.,
            ICLR 2018); 0 does not mix.
        average_decay: decay of the exponential average of the weights, per step.
        max_skipped_steps: maximum number of consecutive steps whose gradient is not finite.
    """

    network: Network
    loss: LossKind
    operator_loss: OperatorLoss
    optimizer: Literal["adamw", "muon"]
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
