"""The commit of a checkout, and the reason where git cannot tell it."""

import os
import subprocess
from pathlib import Path

import pytest

from pipeline.runtime import provenance


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the checkout, and in which git knows no user's settings."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setattr(provenance, "PROJECT", tmp_path)
    provenance._warn.cache_clear()
    return tmp_path


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    return subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


def test_the_commit_says_whether_code_was_changed(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    git(checkout, "init", "--quiet")
    (checkout / "params.yaml").write_text("a: 1\n")
    git(checkout, "add", ".")
    git(checkout, "commit", "--quiet", "-m", "start")
    head = git(checkout, "rev-parse", "HEAD").strip()
    assert provenance.commit() == head
    (checkout / "params.yaml").write_text("a: 2\n")
    assert provenance.commit() == f"{head}+changes"
    assert capsys.readouterr() == ("", "")


def test_without_a_repository_a_commit_or_git_the_reason_is_printed_once(
    checkout: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert provenance.commit() == provenance.commit() == "unknown"
    assert capsys.readouterr().err == "the commit of this checkout is recorded as unknown: it is not a git repository\n"
    git(checkout, "init", "--quiet")
    assert provenance.commit() == "unknown"
    assert "it has no commit yet" in capsys.readouterr().err
    monkeypatch.setenv("PATH", str(checkout))
    assert provenance.commit() == "unknown"
    assert "git is not installed" in capsys.readouterr().err


def test_a_checkout_of_another_user_is_reported_with_the_remedy(
    checkout: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    git(checkout, "init", "--quiet")
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")  # git's own switch for such tests
    assert provenance.commit() == "unknown"
    said = capsys.readouterr().err
    assert "belongs to another user" in said
    assert f"git config --global --add safe.directory {checkout}" in said
