"""The pyfunc model that MLflow serves: code that is stored with a registered model (MLflow's "models from code").

MLflow runs it with the `dgunet` that was stored with it; this project does not import it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import torch

import dgunet


class Restorer(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """Maps a batch of images, float32 B H W C in [0, 1], to the restored batch of the same shape."""

    def load_context(self, context: Any) -> None:
        """Load the weights."""
        self.network = dgunet.load_model(Path(context.artifacts["model"]))
        self.network.to("cuda" if torch.cuda.is_available() else "cpu")

    def predict(self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None) -> np.ndarray:
        """Restore each image of the batch."""
        restored = [dgunet.restore(self.network, image) for image in model_input]
        return np.stack(restored) if restored else model_input


mlflow.models.set_model(Restorer())
