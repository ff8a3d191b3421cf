"""Model folders as repositories of the Hugging Face Hub, or of a server that speaks its protocol (HF_ENDPOINT)."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dgunet.config import CARD_FILE, WEIGHTS_FILE
from dgunet.console import is_terminal
from dgunet.hub import cache

PREFIX = "hf://"
_PICKLES = (".bin", ".pth", ".pt", ".ckpt", ".pkl")


def fetch_repository(source: str) -> Path:
    """Return the folder of the Hub's own cache with config.json and model.safetensors of a repository.

    Args:
        source: `hf://OWNER/NAME` or `hf://OWNER/NAME@REVISION`; a revision is a branch, a tag or a commit.

    Raises:
        ValueError: there is no such repository, it holds no such model, or it cannot be reached and is not cached.
        ImportError: huggingface_hub is not installed.
    """
    repository, revision = parts(source)
    with _errors(source):
        from huggingface_hub import HfApi, snapshot_download
        from huggingface_hub.utils.tqdm import disable_progress_bars

        if not is_terminal(sys.stderr):
            disable_progress_bars()
        files = [CARD_FILE, WEIGHTS_FILE]
        try:
            info = HfApi(endpoint=endpoint()).model_info(repository, revision=revision, timeout=20)
        except Exception as error:
            if not _is_without_answer(error):
                raise
            folder = snapshot_download(repository, revision=revision, allow_patterns=files, local_files_only=True)
            print(f"{source}: the Hub does not answer; using the cached model", file=sys.stderr)
            return Path(folder)
        names = {sibling.rfilename for sibling in info.siblings or []}
        missing = [name for name in files if name not in names]
        if missing:
            pickles = sorted(name for name in names if name.endswith(_PICKLES))
            reason = f"; {pickles[0]} is a pickle, which can run code, and is not loaded" if pickles else ""
            raise ValueError(f"{source}: not a DGUNet, it lacks {' and '.join(missing)}{reason}")
        return Path(snapshot_download(repository, revision=revision, allow_patterns=files, endpoint=endpoint()))


def push_folder(folder: Path, target: str) -> str:
    """Upload a folder as one commit to a repository, which is created if it does not exist; return its address.

    Raises:
        ValueError: the target is not an address of a repository, or the Hub refuses the upload.
        ImportError: huggingface_hub is not installed.
    """
    repository, revision = parts(target)
    with _errors(target):
        from huggingface_hub import HfApi

        api = HfApi(endpoint=endpoint())
        api.create_repo(repository, exist_ok=True)
        return str(
            api.upload_folder(repo_id=repository, folder_path=folder, revision=revision, commit_message="Add a DGUNet")
        )


def parts(address: str) -> tuple[str, str | None]:
    """Return repository and revision of "hf://OWNER/NAME@REVISION"; raises ValueError for another form."""
    match = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", address)
    if match is None:
        raise ValueError(f"{address}: write hf://OWNER/NAME or hf://OWNER/NAME@REVISION")
    return match[1], match[2]


def endpoint() -> str | None:
    """Return the address of the Hub that the user has set, None for the official one."""
    return os.environ.get("HF_ENDPOINT")


def _is_without_answer(error: Exception) -> bool:
    """Whether the Hub did not answer, or answered that it cannot now, rather than that there is no such thing."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, HfHubHTTPError):
        return error.response is not None and error.response.status_code >= 500
    # Its HTTP client has been requests, httpx and httpx2; their errors have no class in common.
    return isinstance(error, OfflineModeIsEnabled) or type(error).__module__.startswith(("httpx", "requests"))


@contextmanager
def _errors(address: str) -> Iterator[None]:
    """Turn errors of the Hub's client into one line."""
    try:
        yield
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "huggingface_hub":
            raise
        raise ImportError(f"{address}: needs huggingface_hub: pip install huggingface_hub") from error
    except ValueError:
        raise
    except Exception as error:
        from huggingface_hub.errors import (
            GatedRepoError,
            HfHubHTTPError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        if isinstance(error, LocalEntryNotFoundError):
            raise ValueError(f"{address}: the Hub does not answer, and the model is not in its cache") from error
        if isinstance(error, GatedRepoError):
            raise ValueError(
                f"{address}: its owner grants access on request; then log in with `hf auth login`"
            ) from error
        if isinstance(error, RevisionNotFoundError):
            raise ValueError(f"{address}: the repository has no such revision") from error
        if isinstance(error, RepositoryNotFoundError):
            raise ValueError(
                f"{address}: no such repository, or it is private: log in with `hf auth login` or set HF_TOKEN"
            ) from error
        if isinstance(error, HfHubHTTPError) or _is_without_answer(error):
            raise ValueError(f"{address}: the request to the Hub failed ({cache.first_line(error)})") from error
        raise
