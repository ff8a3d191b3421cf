"""The baseline of block compressive sensing, computed with the sensing matrix of a new network."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32

from dgunet.config import BLOCK_SIZE
from dgunet.network.gradient import SensingMatrix
from dgunet.network.unfolding import pad
from dgunet.tensors import to_array, to_tensor


def reconstruct(clean: Float32[np.ndarray, "H W 1"], num_measurements: int) -> Float32[np.ndarray, "H W 1"]:
    """Return the image of least norm that has the measurements of `clean`, M in each block; clipped to [0, 1].

    The rows of Φ are orthonormal, so Φ⁺ = Φᵀ.
    """
    waves = SensingMatrix(num_measurements).requires_grad_(False)
    image = waves.adjoint(waves.degrade(pad(to_tensor(clean), BLOCK_SIZE)))
    return to_array(image[:, :, : clean.shape[0], : clean.shape[1]].clamp(0, 1))
