"""The passes forward and backward of a training step as one CUDA graph.

A small network's kernels end faster than the host starts them, some 2000 in a step. A graph starts all of them in one
call. Source: Nguyen et al., "Accelerating PyTorch with CUDA Graphs", PyTorch blog, 2021.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

WARM_UP_PASSES = 3  # libraries choose their algorithms and allocate work space, which a capture does not allow


class GradientGraph:
    """A function of a batch that sets the gradients of parameters, captured once and replayed for each batch.

    The gradients, the loss and everything in between stay at the same places in memory, which nothing else uses.

    Args:
        gradients: clean and degraded batch on the device -> loss; sets the gradients, and never waits for the device.
        clean: a batch; those that follow have its shape.
        degraded: likewise.
        device: the GPU.
    """

    def __init__(
        self, gradients: Callable[[Tensor, Tensor], Tensor], clean: Tensor, degraded: Tensor, device: torch.device
    ) -> None:
        self.clean, self.degraded = clean.to(device), degraded.to(device)
        with torch.cuda.device(device):
            aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(WARM_UP_PASSES):
                    gradients(self.clean, self.degraded)
            torch.cuda.current_stream().wait_stream(aside)
            self.graph = torch.cuda.CUDAGraph()
            # Other threads, as the loader's, may use the device in the meantime.
            with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
                self.loss = gradients(self.clean, self.degraded)

    def __call__(self, clean: Tensor, degraded: Tensor) -> Tensor:
        """Set the gradients for a batch on the host, and return its loss, on the device."""
        self.clean.copy_(clean, non_blocking=True)
        self.degraded.copy_(degraded, non_blocking=True)
        self.graph.replay()
        return self.loss.clone()
