"""The network of the paper: gradient steps and learned proximal mappings, unfolded into stages."""

from dgunet.network.gradient import Measurements
from dgunet.network.unfolding import DGUNet, DGUNetConfig

__all__ = ["DGUNet", "DGUNetConfig", "Measurements"]
