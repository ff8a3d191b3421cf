"""The network of the paper: K stages, each a gradient step and a learned proximal mapping.

In the order of imports: `blocks` (convolution blocks), `gradient` (v = x − ρ·Φᵀ(Φx − y)), `fusion` (features of the
previous stage), `proximal` (x = prox_J(v)), `unfolding` (stages and the network).
"""

from dgunet.config import DGUNetConfig
from dgunet.network.gradient import Measurements
from dgunet.network.unfolding import DGUNet

__all__ = ["DGUNet", "DGUNetConfig", "Measurements"]
