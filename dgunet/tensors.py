"""Conversions between image arrays H W C and tensors B C H W, both float32 in [0, 1]."""

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor


def to_tensor(image: Float32[np.ndarray, "H W C"]) -> Float[Tensor, "1 C H W"]:
    """Return a contiguous copy of an array as a batch of one."""
    return torch.from_numpy(image.transpose(2, 0, 1).copy())[None]


def to_array(tensor: Float[Tensor, "1 C H W"]) -> Float32[np.ndarray, "H W C"]:
    """Return a batch of one, on any device and of any dtype, as a contiguous float32 array."""
    return np.ascontiguousarray(tensor.detach()[0].permute(1, 2, 0).float().cpu().numpy())
