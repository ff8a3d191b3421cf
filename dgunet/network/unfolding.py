"""DGUNet: K unfolded iterations of proximal gradient descent, trained end to end.

    x̂ = argmin ½‖Φx − y‖² + λJ(x):     v_k = x_{k−1} − ρ_k·Φᵀ(Φx_{k−1} − y),     x_k = prox_J(v_k),     k = 1..K

Source: Mou, Wang, Zhang, "Deep Generalized Unfolding Networks for Image Restoration", CVPR 2022 (arXiv 2204.13348).
Blind family: Φ learned per stage, x_0 = y. Sensing family: Φ known, on 32×32 blocks, x_0 = Φᵀy. DGUNet: stages 2..K−1
are one module. DGUNet+: all stages are separate modules.
"""

from collections.abc import Iterator
from itertools import islice

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from dgunet.config import BLOCK_SIZE, DGUNetConfig, LocalStatistics
from dgunet.network.blocks import ShallowFeatures, conv3x3
from dgunet.network.fusion import (
    Concatenation,
    GatedFusion,
    PlainFusion,
    ReceivedFeatures,
    StageFeatures,
    SubspaceProjection,
)
from dgunet.network.gradient import GradientDescentModule, Measurements, SensingMatrix
from dgunet.network.proximal import NUM_LEVELS, ProximalMapping

SIZE_MULTIPLE = 2**NUM_LEVELS
INITIAL_CORRECTION = 0.01  # factor on torch's initial weights


def _fusions(
    config: DGUNetConfig,
) -> tuple[SubspaceProjection | Concatenation, type[PlainFusion]]:
    if config.sensing_ratio_percent is None:
        return SubspaceProjection(config.width), GatedFusion
    return Concatenation(config.width, config.width), PlainFusion


class Stage(nn.Module):
    """One iteration: a gradient step, then the proximal mapping."""

    def __init__(self, config: DGUNetConfig, *, first: bool) -> None:
        super().__init__()
        blind = config.sensing_ratio_percent is None
        merge, fusion = (None, None) if first else _fusions(config)
        self.gradient = GradientDescentModule(config.image_channels, learned_degradation=blind)
        self.proximal = ProximalMapping(
            config.image_channels, config.width, config.growth, merge=merge, fusion=fusion, gated_end=not blind
        )

    def forward(
        self,
        estimate: Float[Tensor, "B C H W"],
        degraded: Float[Tensor, "B M h w"],
        previous: StageFeatures | ReceivedFeatures | None,
        sensing: SensingMatrix | None,
    ) -> tuple[Float[Tensor, "B C H W"], StageFeatures | None]:
        """Return the next estimate and the features for the next stage.

        Args:
            estimate: x of the previous stage.
            degraded: y, the degraded image; with `sensing` the measurements.
            previous: features of the previous stage; None in the first stage.
            sensing: the known Φ of the sensing family; None in the blind family.
        """
        gradient_step = self.gradient(estimate, degraded, sensing)
        estimate, features = self.proximal(gradient_step, previous)
        return estimate, features


class LastStage(nn.Module):
    """The last iteration: a gradient step, shallow features, one merge and one convolution; no encoder or decoder."""

    def __init__(self, config: DGUNetConfig) -> None:
        super().__init__()
        blind = config.sensing_ratio_percent is None
        separate = blind and not config.share_stages
        head_width = config.width if separate else config.width + config.head_growth
        self.gradient = GradientDescentModule(config.image_channels, learned_degradation=blind)
        self.shallow = ShallowFeatures(config.image_channels, config.width)
        self.merge = SubspaceProjection(config.width) if separate else Concatenation(config.width, head_width)
        self.tail = conv3x3(head_width, config.image_channels, bias=False)

    def forward(
        self,
        estimate: Float[Tensor, "B C H W"],
        degraded: Float[Tensor, "B M h w"],
        previous: StageFeatures | ReceivedFeatures | None,
        sensing: SensingMatrix | None,
    ) -> tuple[Float[Tensor, "B C H W"], StageFeatures | None]:
        """Return the final estimate, y + correction (blind) or v + correction (sensing), and None; see `Stage`."""
        assert previous is not None, "the last stage is not the first"
        gradient_step = self.gradient(estimate, degraded, sensing)
        correction = self.tail(self.merge(self.shallow(gradient_step), previous.output))
        return (degraded if sensing is None else gradient_step) + correction, None


class DGUNet(nn.Module):
    """Deep generalized unfolding network: `model(degraded)` returns all K estimates, the last is the restored image.

    A new network corrects almost nothing: its estimates start near y (blind) or Φᵀy (sensing).

    Attributes:
        config: the sizes.
        recompute: True keeps the activations of one stage in memory instead of all K and computes them again in the
            backward pass (activation checkpointing, Chen et al. 2016, arXiv 1604.06174).
        local_statistics: the windows over which `dgunet.restore` takes statistics; None: the whole image. `forward`
            takes those of the whole image.
    """

    local_statistics: LocalStatistics | None = None

    def __init__(self, config: DGUNetConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute = False
        num_between = config.num_stages - 2
        self.sensing = SensingMatrix(config.num_measurements) if config.num_measurements else None
        self.first = Stage(config, first=True)
        self.between = nn.ModuleList(
            Stage(config, first=False) for _ in range(min(num_between, 1) if config.share_stages else num_between)
        )
        self.last = LastStage(config)
        with torch.no_grad():  # not zero: with zero, no other layer would have a gradient in the first step
            for stage in (self.first, *self.between):
                stage.proximal.end.correct.weight.mul_(INITIAL_CORRECTION)
            self.last.tail.weight.mul_(INITIAL_CORRECTION)
        in_channels_last(self)

    @classmethod
    def with_seed(cls, config: DGUNetConfig, seed: int) -> "DGUNet":
        """Return a new CPU network whose weights depend on `seed` alone; the global random state stays unchanged."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return cls(config)

    def stages(self) -> Iterator[Stage | LastStage]:
        """Yield the K stages in the order of their use; a shared stage comes K − 2 times."""
        yield self.first
        for index in range(self.config.num_stages - 2):
            stage = self.between[0 if self.config.share_stages else index]
            assert isinstance(stage, Stage)
            yield stage
        yield self.last

    def sense(self, clean: Float[Tensor, "B 1 H W"]) -> Measurements:
        """Return the measurements of an image in [0, 1] of any size; differentiable, also in Φ.

        Raises:
            ValueError: the network is of the blind family.
        """
        if self.sensing is None:
            raise ValueError("this network has no sensing matrix; call model(degraded) with the degraded image")
        padded = pad(clean, BLOCK_SIZE)
        return Measurements(self.sensing.degrade(padded), clean.shape[2], clean.shape[3])

    def network_input(
        self, clean: Float[Tensor, "B C H W"], degraded: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "B C H W"] | Measurements:
        """Return the input for a pair: the degraded image (blind) or the measurements of the clean one (sensing)."""
        return degraded if self.sensing is None else self.sense(clean)

    def forward(
        self, degraded: Float[Tensor, "B C H W"] | Measurements, num_stages: int | None = None
    ) -> tuple[Float[Tensor, "B C H W"], ...]:
        """Return the estimates of the stages, first to last.

        Args:
            degraded: a degraded image in [0, 1] (any H, W ≥ 1), or measurements.
            num_stages: how many stages are computed; None: all K.

        Raises:
            ValueError: an image for a sensing network, measurements for a blind one, or a wrong number of channels or
                measurements.
        """
        self._check(degraded)
        if not isinstance(degraded, Measurements):
            height, width = degraded.shape[2:]
            padded = pad(degraded, SIZE_MULTIPLE)
            estimates = self.unfold(padded.contiguous(memory_format=torch.channels_last), num_stages)
        else:
            values, height, width = degraded
            if self.config.full_image:
                estimates = self.unfold(values, num_stages)
            else:
                rows, columns = values.shape[2:]
                blocks = values.permute(0, 2, 3, 1).reshape(-1, values.shape[1], 1, 1)
                estimates = [join_blocks(estimate, rows, columns) for estimate in self.unfold(blocks, num_stages)]
        return tuple(estimate[:, :, :height, :width] for estimate in estimates)

    def _check(self, degraded: Tensor | Measurements) -> None:
        if self.sensing is None:
            channels = self.config.image_channels
            if isinstance(degraded, Measurements):
                raise ValueError("this network restores images, but got the measurements of a sensing network")
            if degraded.shape[1] != channels:
                raise ValueError(f"this network restores images of {channels} channels, but got {degraded.shape[1]}")
        else:
            count = self.config.num_measurements
            if not isinstance(degraded, Measurements):
                raise ValueError("this network restores measurements, but got an image; call model(model.sense(clean))")
            if degraded.values.shape[1] != count:
                raise ValueError(
                    f"this network takes {count} measurements per block, but got {degraded.values.shape[1]}"
                )

    def unfold(self, degraded: Tensor, num_stages: int | None) -> list[Tensor]:
        """Return the estimates of images, or of measurements, of a size that the network can halve three times."""
        estimate = degraded if self.sensing is None else self.sensing.adjoint(degraded)
        previous: StageFeatures | None = None
        estimates = []
        for stage in islice(self.stages(), num_stages):
            inputs = (estimate, degraded, previous, self.sensing)
            if self.recompute and torch.is_grad_enabled():
                estimate, previous = checkpoint(stage, *inputs, use_reentrant=False, preserve_rng_state=False)
            else:
                estimate, previous = stage(*inputs)
            estimates.append(estimate)
        return estimates


def in_channels_last(network: nn.Module) -> None:
    """Store the weights in channels-last order, as the features are: convolutions are fastest where both agree."""
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def pad(image: Float[Tensor, "B C H W"], multiple: int) -> Float[Tensor, "B C padded_H padded_W"]:
    """Return the image padded at bottom and right to multiples of `multiple`, and one side to at least 16.

    16 because the norm of the bottom level, at 1/8 of the resolution, needs more than one pixel. Pads by reflection, or
    by replication along a side that is too short to reflect.
    """
    height, width = _padded_size(image.shape[2], image.shape[3], multiple)
    below, right = height - image.shape[2], width - image.shape[3]
    if right:
        image = functional.pad(image, (0, right, 0, 0), mode="reflect" if right < image.shape[3] else "replicate")
    if below:
        image = functional.pad(image, (0, 0, 0, below), mode="reflect" if below < image.shape[2] else "replicate")
    return image


def padded_size(degraded: Float[Tensor, "B C H W"] | Measurements) -> tuple[int, int]:
    """Return height and width that the network computes with, in pixels."""
    if isinstance(degraded, Measurements):
        rows, columns = degraded.values.shape[2:]
        return rows * BLOCK_SIZE, columns * BLOCK_SIZE
    return _padded_size(degraded.shape[2], degraded.shape[3], SIZE_MULTIPLE)


def _padded_size(height: int, width: int, multiple: int) -> tuple[int, int]:
    height, width = (-(-size // multiple) * multiple for size in (height, width))
    return height, 2 * SIZE_MULTIPLE if max(height, width) <= SIZE_MULTIPLE else width


def join_blocks(blocks: Float[Tensor, "_ 1 32 32"], rows: int, columns: int) -> Float[Tensor, "B 1 H W"]:
    """Return the images whose blocks lie in the batch, row by row."""
    grid = blocks.view(-1, rows, columns, BLOCK_SIZE, BLOCK_SIZE).permute(0, 1, 3, 2, 4)
    return grid.reshape(-1, 1, rows * BLOCK_SIZE, columns * BLOCK_SIZE)
