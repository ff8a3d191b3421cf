"""Fetches model folders from an address, a Hugging Face repository or an MLflow registry, and caches them."""

from pathlib import Path

FORMS = (
    "a folder, https://HOST/FOLDER, s3://BUCKET/FOLDER, hf://OWNER/NAME[@REVISION], models:/NAME@ALIAS, or "
    "models:/NAME/VERSION"
)


def model_folder(source: str | Path) -> Path:
    """Return the folder of a model; a model at an address is fetched, unless the user's cache already holds it.

    Args:
        source: a folder; `https://…/FOLDER`, `s3://BUCKET/FOLDER` or another address that fsspec reads, of a folder
            with config.json and model.safetensors, where `#sha256=…` names the sha256 of the weights to expect;
            `hf://OWNER/NAME` or `hf://OWNER/NAME@REVISION`; `models:/NAME@ALIAS` or `models:/NAME/VERSION`.

    Returns:
        The folder. For an address it is part of the cache: do not change it. Without a connection it is the model of
        the last answer; a line on stderr says so.

    Raises:
        ValueError: there is no such model, it cannot be fetched, or the received files do not match config.json.
        ImportError: an optional package is not installed; the message says which.
    """
    if isinstance(source, Path) or not ("://" in source or source.startswith("models:/")):
        return Path(source)
    if source.startswith("models:/"):
        from dgunet.hub.registry import pull

        return pull(source)
    if source.startswith("hf://"):
        from dgunet.hub.huggingface import fetch_repository

        return fetch_repository(source)
    from dgunet.hub.addresses import fetch_address

    return fetch_address(source)
