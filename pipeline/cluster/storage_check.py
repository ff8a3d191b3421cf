"""Checks that a storage can be used: writes, reads and deletes a small file."""

from __future__ import annotations

import uuid

import fsspec

# A run waits for a storage that is briefly unreachable; a check does not.
S3_OPTIONS = {
    "skip_instance_cache": True,
    "config_kwargs": {"connect_timeout": 3, "read_timeout": 4, "retries": {"max_attempts": 1}},
}
CONTENT = b"written to check that this storage can be used; it may be deleted\n"


def check_storage(variable: str, address: str) -> str:
    """Return the address if a file can be written, read and deleted there.

    Args:
        variable: the environment variable that names the storage, for messages.
        address: a folder or a URL.

    Raises:
        ValueError: the storage cannot be used.
    """
    name = f".check-{uuid.uuid4().hex}"
    protocol = address.partition("://")[0] if "://" in address else "file"
    try:
        files, folder = fsspec.core.url_to_fs(address, **(S3_OPTIONS if protocol == "s3" else {}))
        if protocol == "s3":
            files.retries = 1
        else:
            files.makedirs(folder, exist_ok=True)
        files.pipe_file(f"{folder}/{name}", CONTENT)
        try:
            if files.cat_file(f"{folder}/{name}") != CONTENT:
                raise OSError("the content read differs from the content written")
        finally:
            files.rm_file(f"{folder}/{name}")
    except Exception as error:  # each protocol of fsspec raises errors of its own
        raise ValueError(f"{variable}={address}: {_explain(error, protocol)}") from error
    return address


def _explain(error: Exception, protocol: str) -> str:
    reason = " ".join((str(error) or type(error).__name__).split())
    code = str(getattr(error.__cause__, "response", {}).get("Error", {}).get("Code", ""))
    if protocol != "s3":
        return f"cannot be used ({reason})"
    if isinstance(error, FileNotFoundError) or code == "NoSuchBucket":
        return "there is no such bucket: create it, or set another"
    if isinstance(error, PermissionError) or "Credentials" in type(error).__name__:
        return f"refused ({reason}): set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY to keys that may write there"
    return f"cannot be reached ({reason}): start it, or set AWS_ENDPOINT_URL to its address"
