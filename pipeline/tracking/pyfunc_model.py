"""The pyfunc model that MLflow serves: code that is stored with a registered model (MLflow's "models from code").

MLflow runs it with the `dgunet` that was stored with it; this project does not import it. A request may hold

    encoded images      bytes, or text in base64 as JSON needs it: PNG comes back in the same form, with metadata
    arrays              H W or H W C, as `dgunet.restore` takes them; nested lists, as in JSON, are float32 in [0, 1]

`mlflow models serve` answers 400 with a line that says which image is wrong and why.
"""

from __future__ import annotations

import base64
import binascii
import os
import threading
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import torch
from mlflow.exceptions import INVALID_PARAMETER_VALUE, MlflowException

import dgunet
from dgunet.images import read_photo
from dgunet.images.encode import encode

# The list holds files or arrays, for which Python has no narrower type that MLflow knows.
warnings.filterwarnings("ignore", ".*Any type hint is inferred")
LIMIT = "DGUNET_MAX_MEGAPIXELS"
DEFAULT_LIMIT = 25.0


class WrongImage(MlflowException):  # type: ignore[misc]
    """A request that cannot be answered. MLflow's server puts the whole request before messages of other errors."""

    def __init__(self, message: str) -> None:
        super().__init__(message, error_code=INVALID_PARAMETER_VALUE)

    @property
    def message(self) -> str:
        """The message, without the text that MLflow adds."""
        return self._message

    @message.setter
    def message(self, text: str) -> None:
        self._message: str = getattr(self, "_message", text)


class Restorer(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """Maps a list of images to the list of restored images."""

    def load_context(self, context: Any) -> None:
        """Load the weights."""
        self.network = dgunet.load_model(Path(context.artifacts["model"]))
        self.network.to("cuda" if torch.cuda.is_available() else "cpu")
        self.max_pixels = int(1e6 * float(os.environ.get(LIMIT, DEFAULT_LIMIT)))
        self.one_at_a_time = threading.Lock()  # requests arrive in threads; this limits memory

    def predict(self, context: Any, model_input: list[Any], params: dict[str, Any] | None = None) -> list[Any]:
        """Restore each image. Raises WrongImage with the number of the first invalid image."""
        return [self._restored(number, image) for number, image in enumerate(model_input, 1)]

    def _restored(self, number: int, image: Any) -> Any:
        try:
            if isinstance(image, str):
                return base64.b64encode(self._restored_file(_decoded(image))).decode()
            if isinstance(image, bytes | bytearray):
                return self._restored_file(bytes(image))
            if isinstance(image, np.ndarray):
                return self._restored_array(image)
            if isinstance(image, list):
                return self._restored_array(np.asarray(image, np.float32)).tolist()
            raise ValueError(f"a {type(image).__name__} is not an image: send a file in base64, or an array")
        except (ValueError, TypeError) as error:
            raise WrongImage(f"image {number}: {str(error).splitlines()[0]}") from error

    def _restored_file(self, data: bytes) -> bytes:
        photo = read_photo(data, max_pixels=self.max_pixels)
        restored = replace(photo, pixels=self._restored_array(photo.pixels))
        return encode(restored, "PNG")[0]

    def _restored_array(self, image: np.ndarray) -> np.ndarray:
        if image.ndim >= 2 and image.shape[0] * image.shape[1] > self.max_pixels:
            raise ValueError(
                f"{image.shape[1]}x{image.shape[0]} pixels are more than {self.max_pixels / 1e6:g} megapixels ({LIMIT})"
            )
        with self.one_at_a_time:
            restored: np.ndarray = dgunet.restore(self.network, image)
        return restored


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        raise ValueError("the text is not base64") from None


mlflow.models.set_model(Restorer())
