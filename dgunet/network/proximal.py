"""Informative proximal mapping module: x = prox_J(v) as an encoder, a decoder and a stage end.

Channels: level i = 0, 1, 2 of the encoder goes from n + i·s to n + (i+1)·s and halves the resolution after it; the
bottom keeps n + 3s; the decoder comes back with n + 2s, n + s, n. n = width, s = growth.
Source: Mou, Wang, Zhang, CVPR 2022 (informative proximal mapping module); for the stage end Zamir et al., "MPRNet",
CVPR 2021 (supervised attention module).
"""

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dgunet.network.blocks import ConvBlock, ShallowFeatures, conv3x3
from dgunet.network.fusion import Concatenation, PlainFusion, ReceivedFeatures, StageFeatures, SubspaceProjection

NUM_LEVELS = 3


class Encoder(nn.Module):
    """Three levels, each followed by a convolution of stride 2, and the bottom level."""

    def __init__(self, width: int, growth: int, fusion: type[PlainFusion] | None) -> None:
        super().__init__()
        channels = [width + level * growth for level in range(NUM_LEVELS + 1)]
        steps = list(pairwise(channels))
        self.levels = nn.ModuleList(ConvBlock(narrow, wide, norm=True) for narrow, wide in steps)
        self.fusions = nn.ModuleList() if fusion is None else nn.ModuleList(fusion(w, n) for n, w in steps)
        self.downsamples = nn.ModuleList(
            nn.Conv2d(wide, wide, kernel_size=4, stride=2, padding=1, bias=False) for wide in channels[1:]
        )
        self.bottom = ConvBlock(channels[-1], channels[-1], norm=True)

    def forward(
        self, features: Float[Tensor, "B n H W"], previous: StageFeatures | ReceivedFeatures | None
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return the outputs of the three levels, finest first, and of the bottom."""
        outputs = []
        for level, (block, downsample) in enumerate(zip(self.levels, self.downsamples, strict=True)):
            features = block(features)
            if previous is not None:
                features = self.fusions[level](features, self.mixed(previous, level))
            outputs.append(features)
            features = downsample(features)
        return tuple(outputs), self.bottom(features)

    def mixed(self, previous: StageFeatures | ReceivedFeatures, level: int) -> Float[Tensor, "B n h w"]:
        """Return the sum conv e + conv d of a level, for its fusion with the previous stage."""
        if isinstance(previous, ReceivedFeatures):
            return previous.mixed(level)
        fusion = self.fusions[level]
        assert isinstance(fusion, PlainFusion)
        return fusion.mixed(previous.encoder[level], previous.decoder[-1 - level])


class Decoder(nn.Module):
    """Three levels, each at twice the resolution of the one before and joined with the encoder's output there."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        channels = [width + level * growth for level in reversed(range(NUM_LEVELS + 1))]
        steps = list(pairwise(channels))
        self.upsamples = nn.ModuleList(nn.ConvTranspose2d(w, n, kernel_size=2, stride=2) for w, n in steps)
        self.skips = nn.ModuleList(conv3x3(w, n, bias=True) for w, n in steps)
        self.levels = nn.ModuleList(ConvBlock(2 * n, n, norm=False) for _, n in steps)

    def forward(self, encoded: tuple[Tensor, ...], bottom: Float[Tensor, "B n h w"]) -> tuple[Tensor, ...]:
        """Return the outputs of the three levels, coarsest first; the last has the resolution of the image."""
        features, outputs = bottom, []
        for upsample, skip, block, encoder_output in zip(
            self.upsamples, self.skips, self.levels, reversed(encoded), strict=True
        ):
            features = block(torch.cat([upsample(features), skip(encoder_output)], dim=1))
            outputs.append(features)
        return tuple(outputs)


class StageEnd(nn.Module):
    """From the last decoder output f to the estimate x and to the output features g; optionally gated by x."""

    def __init__(self, image_channels: int, width: int, *, gated: bool) -> None:
        super().__init__()
        self.correct = nn.Conv2d(width, image_channels, kernel_size=1, bias=False)
        self.attend = nn.Conv2d(width, width, kernel_size=1, bias=False)
        self.gate = nn.Conv2d(image_channels, width, kernel_size=1, bias=False) if gated else None

    def forward(
        self, gradient_step: Float[Tensor, "B C H W"], features: Float[Tensor, "B n H W"]
    ) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B n H W"]]:
        """Return x = v + W₁f and g = f + W₂f (gated: g = f + W₂f · sigmoid(W₃x)); v is `gradient_step`."""
        estimate, attended = gradient_step + self.correct(features), self.attend(features)
        if self.gate is None:
            return estimate, features + attended
        return estimate, torch.addcmul(features, attended, torch.sigmoid(self.gate(estimate)))


class ProximalMapping(nn.Module):
    """One informative proximal mapping.

    Args:
        image_channels: C.
        width: n, channels at full resolution.
        growth: s, channels added per encoder level.
        merge: module that merges the shallow features with g of the previous stage; None in the first stage.
        fusion: class of the modules that add encoder and decoder features of the previous stage; None in the first.
        gated_end: whether the stage end is gated by the estimate.
    """

    def __init__(
        self,
        image_channels: int,
        width: int,
        growth: int,
        *,
        merge: SubspaceProjection | Concatenation | None,
        fusion: type[PlainFusion] | None,
        gated_end: bool,
    ) -> None:
        super().__init__()
        self.shallow = ShallowFeatures(image_channels, width)
        self.merge = merge
        self.encoder = Encoder(width, growth, fusion)
        self.decoder = Decoder(width, growth)
        self.end = StageEnd(image_channels, width, gated=gated_end)

    def forward(
        self, gradient_step: Float[Tensor, "B C H W"], previous: StageFeatures | ReceivedFeatures | None
    ) -> tuple[Float[Tensor, "B C H W"], StageFeatures]:
        """Return the estimate and the features of this stage; H and W are multiples of 8, H·W is at least 128."""
        features = self.shallow(gradient_step)
        if self.merge is not None:
            assert previous is not None, "only the first stage has no previous stage"
            features = self.merge(features, previous.output)
        encoded, bottom = self.encoder(features, previous)
        decoded = self.decoder(encoded, bottom)
        estimate, output = self.end(gradient_step, decoded[-1])
        return estimate, StageFeatures(encoded, decoded, output)
