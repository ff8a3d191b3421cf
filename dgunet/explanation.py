"""What a network does to one photograph, stage by stage: gradient step, proximal mapping, learned degradation.

    v_k = x_{k−1} − ρ_k·Φ_kᵀ(Φ_k·x_{k−1} − y),     x_k = prox(v_k),     k = 1..K

Source: Mou, Wang, Zhang, CVPR 2022. In the blind family y is the photograph and x_0 = y; in the sensing family y are
measurements of the photograph and x_0 = Φᵀy. Nothing in the loss of the paper makes Φ equal to the true degradation:
the numbers say what the network computes, not what happened in the camera.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from dgunet.config import BLOCK_SIZE
from dgunet.inference import estimates
from dgunet.metrics import psnr
from dgunet.network import DGUNet
from dgunet.network.unfolding import SIZE_MULTIPLE, join_blocks, pad
from dgunet.tensors import to_array, to_tensor

Image = Float32[np.ndarray, "H W C"]


@dataclass(frozen=True)
class StageExplanation:
    """One stage k.

    Images are H W C with black 0 and white 1, and are not clipped; changes have a sign. Residuals are root mean
    squares: of image values (blind family) or of measurements (sensing family).

    Attributes:
        step_size: ρ_k.
        gradient_step: v_k.
        estimate: x_k.
        gradient_change: v_k − x_{k−1}.
        proximal_change: x_k − v_k.
        degraded_again: Φ_k(x_k); None in the sensing family, where it is no image.
        residual_before: of Φ_k(x_{k−1}) − y.
        residual_after_gradient: of Φ_k(v_k) − y.
        residual: of Φ_k(x_k) − y.
        psnr: of x_k against the clean image in dB; without one, against the photograph (sensing) or None (blind).
        gradient_psnr: of v_k.
    """

    step_size: float
    gradient_step: Image
    estimate: Image
    gradient_change: Image
    proximal_change: Image
    degraded_again: Image | None
    residual_before: float
    residual_after_gradient: float
    residual: float
    psnr: float | None
    gradient_psnr: float | None


@dataclass(frozen=True)
class Explanation:
    """What a network does to one photograph: x_0 (the photograph, or Φᵀy of its measurements), then its stages."""

    start: Image
    stages: tuple[StageExplanation, ...]
    start_psnr: float | None

    @property
    def change(self) -> Float32[np.ndarray, "H W"]:
        """How far the restored image is from x_0: the largest of the channels' absolute differences."""
        changed: Float32[np.ndarray, "H W"] = np.abs(self.stages[-1].estimate - self.start).max(axis=2)
        return changed


def explain(model: DGUNet, image: Image, clean: Float32[np.ndarray, "_ _ _"] | None = None) -> Explanation:
    """Return what every stage does, with the statistics that `dgunet.restore` takes.

    Args:
        model: a network in evaluation mode.
        image: the photograph in [0, 1] with the network's channels. A sensing network measures it.
        clean: the same photograph without degradation, for PSNR; of the same shape.

    Raises:
        ValueError: the number of channels is not the network's, or `clean` has another shape.
    """
    if image.shape[2] != model.config.image_channels:
        raise ValueError(f"the image has {image.shape[2]} channels, the network {model.config.image_channels}")
    if clean is not None and clean.shape != image.shape:
        raise ValueError(f"the clean image has shape {clean.shape}, the photograph {image.shape}")
    reference = image if clean is None and model.sensing is not None else clean  # sensing degrades the image itself
    device = next(model.parameters()).device
    tensor = to_tensor(image).to(device)
    with torch.inference_mode(), _recorded(model) as steps:
        degraded = tensor if model.sensing is None else model.sense(tensor)
        results = estimates(model, degraded)
    shape = image.shape[:2]

    def as_image(padded: Tensor) -> Image:
        if model.sensing is not None and not model.config.full_image:
            rows, columns = (-(-side // BLOCK_SIZE) for side in shape)
            padded = join_blocks(padded, rows, columns)
        return to_array(padded[:, :, : shape[0], : shape[1]])

    def quality(estimate: Image) -> float | None:
        return None if reference is None else float(psnr(to_tensor(estimate), to_tensor(reference)))

    start = as_image(steps[0][0])
    stages = []
    with torch.inference_mode():
        for stage, (before, after), result in zip(model.stages(), steps, results, strict=True):
            estimate, gradient_step, previous = to_array(result), as_image(after), as_image(before)
            learned = stage.gradient.learned
            again = None
            if learned is not None:
                again = as_image(learned.degrade(pad(result, SIZE_MULTIPLE)))
                target = as_image(pad(tensor, SIZE_MULTIPLE))
                residuals = [as_image(learned.degrade(x)) - target for x in (before, after)] + [again - target]
            else:
                assert model.sensing is not None
                measured = model.sense(tensor).values
                inputs = (pad(to_tensor(x).to(device), BLOCK_SIZE) for x in (previous, gradient_step, estimate))
                residuals = [(model.sensing.degrade(x) - measured).cpu().numpy() for x in inputs]
            before_step, after_step, at_end = (float(np.sqrt(np.square(r, dtype=np.float64).mean())) for r in residuals)
            stages.append(
                StageExplanation(
                    step_size=float(stage.gradient.step_size),
                    gradient_step=gradient_step,
                    estimate=estimate,
                    gradient_change=gradient_step - previous,
                    proximal_change=estimate - gradient_step,
                    degraded_again=again,
                    residual_before=before_step,
                    residual_after_gradient=after_step,
                    residual=at_end,
                    psnr=quality(estimate),
                    gradient_psnr=quality(gradient_step),
                )
            )
    return Explanation(start, tuple(stages), quality(start))


@contextmanager
def _recorded(model: DGUNet) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Record x_{k−1} and v_k of every gradient step, in the order of the stages."""
    steps: list[tuple[Tensor, Tensor]] = []

    def record(_: object, inputs: tuple[Any, ...], output: Tensor) -> None:
        steps.append((inputs[0], output))

    modules = {id(stage.gradient): stage.gradient for stage in model.stages()}
    handles = [module.register_forward_hook(record) for module in modules.values()]
    try:
        yield steps
    finally:
        for handle in handles:
            handle.remove()
