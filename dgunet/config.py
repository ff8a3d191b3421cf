"""Settings: sizes of a network, loss, files of a model folder. Imports no torch, so settings are checked quickly."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

ATTENTION_REDUCTION = 4  # channel attention squeezes n channels to n // 4
BLOCK_SIZE = 32  # side of a block of compressive sensing, in pixels
CARD_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"  # the files of a model folder
LossKind = Literal["charbonnier", "charbonnier_edge", "charbonnier_clamped", "mse_clamped", "psnr"]


StatisticsKind = Literal["norm", "attention", "projection"]


@dataclass(frozen=True)
class LocalStatistics:
    """Statistics that are taken over windows of the image instead of over all of it.

    Networks are trained on small patches: in a large photograph, the statistics of a window of the size of some patches
    may be more like those of training. dgunet/network/statistics.py computes them.

    Attributes:
        window: side in pixels: 96, 160, 224 or another odd multiple of 32.
        of: which statistics: of the half instance norm, the channel attention, the subspace projection.

    Raises:
        ValueError: a field has another value; the message begins with its name.
    """

    window: int
    of: tuple[StatisticsKind, ...]

    def __post_init__(self) -> None:
        odd = isinstance(self.window, int) and self.window > 0 and self.window % (2 * BLOCK_SIZE) == BLOCK_SIZE
        if not odd:
            raise ValueError(f"window: must be an odd multiple of {BLOCK_SIZE}, is {self.window!r}")
        unknown = [kind for kind in self.of if kind not in get_args(StatisticsKind)]
        if unknown or not self.of or len(set(self.of)) != len(self.of):
            raise ValueError(f"of: must name some of {', '.join(get_args(StatisticsKind))} once, is {self.of!r}")

    def __str__(self) -> str:
        """Describe the windows in a phrase."""
        return f"{', '.join(self.of)} over windows of {self.window} pixels"


@dataclass(frozen=True)
class DGUNetConfig:
    """Sizes of a DGUNet; the defaults are those of the published deraining network.

    Attributes:
        image_channels: channels of the image; the sensing family restores one (luma).
        width: channels at full resolution, n; at least 4.
        growth: channels added per encoder level, s.
        head_growth: channels added before the last convolution, h; the blind family with separate stages has none
            and ignores it.
        num_stages: unfolded iterations, K; at least 2.
        share_stages: stages 2..K−1 are one module (DGUNet) instead of K−2 (DGUNet+).
        sensing_ratio_percent: measurements per pixel of block compressive sensing, in percent; None: blind family.
        full_image: sensing only: False restores every 32×32 block on its own.

    Raises:
        ValueError: a field has a wrong type or value; the message begins with its name.
    """

    image_channels: int = 3
    width: int = 40
    growth: int = 20
    head_growth: int = 16
    num_stages: int = 7
    share_stages: bool = True
    sensing_ratio_percent: int | float | None = None
    full_image: bool = True

    def __post_init__(self) -> None:
        least = {"image_channels": 1, "width": ATTENTION_REDUCTION, "growth": 0, "head_growth": 0, "num_stages": 2}
        for name, minimum in least.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
                raise ValueError(f"{name}: must be a whole number of at least {minimum}, is {value!r}")
        for name in ("share_stages", "full_image"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}: must be true or false, is {getattr(self, name)!r}")
        ratio = self.sensing_ratio_percent
        if ratio is None:
            if not self.full_image:
                raise ValueError("full_image: false needs a sensing network, set sensing_ratio_percent too")
            return
        if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 < ratio <= 100:
            raise ValueError(f"sensing_ratio_percent: must be above 0 and at most 100, or None, is {ratio!r}")
        if self.image_channels != 1:
            raise ValueError(f"image_channels: a sensing network restores 1 channel (luma), is {self.image_channels}")

    @property
    def num_measurements(self) -> int:
        """M, the measurements of one 32×32 block; 0 in the blind family."""
        # Multiplying before dividing gives M back exactly for a ratio of 100·M/1024 percent.
        return math.ceil((self.sensing_ratio_percent or 0) * BLOCK_SIZE**2 / 100)
