"""Fenced blocks of the documents, and the commands in them.

`bash` and `python` blocks are run by test_commands.py. `sh` blocks need a network, a cluster or a long time: only what
they name is checked.
"""

import re
import shlex
import subprocess
from collections.abc import Iterator
from typing import NamedTuple

from factories import PROJECT

LANGUAGES = {"bash", "sh", "python", "yaml", "toml", "text", "bibtex"}
_FENCE = re.compile(r"^(?P<fence>```+)(?P<language>[^\n`]*)\n(?P<code>.*?)^(?P=fence)[ \t]*$", re.M | re.S)
_SEPARATORS = {"&&", "||", ";", "|", "&"}


class Block(NamedTuple):
    """One fenced block."""

    document: str
    line: int
    language: str
    code: str

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"


class Command(NamedTuple):
    """One simple command: variables set before it, and its words."""

    variables: dict[str, str]
    words: list[str]


def tracked_files() -> list[str]:
    """Files of the checkout that git tracks or would track."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=PROJECT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [name for name in listed.stdout.splitlines() if (PROJECT / name).is_file()]


def documents() -> list[str]:
    """The documents, README first, as they are to be read and run."""
    first = ["README.md", "docs/tutorial.md"]
    return [*first, *(name for name in tracked_files() if name.endswith(".md") and name not in first)]


def blocks(document: str) -> list[Block]:
    """The fenced blocks of a document, without the spaces that indent them within a list."""
    text = re.sub(r"^ {1,4}(?=```)", "", (PROJECT / document).read_text(encoding="utf-8"), flags=re.M)
    return [
        Block(document, text[: match.start()].count("\n") + 1, match["language"].strip(), match["code"])
        for match in _FENCE.finditer(text)
    ]


def commands(block: Block) -> Iterator[Command]:
    """The simple commands of a shell block; words of control structures and substitutions are not taken apart."""
    for line in block.code.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word in _SEPARATORS:
                if words:
                    yield _command(words)
                words = []
            else:
                words.append(word)


def _command(words: list[str]) -> Command:
    variables = {}
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0], re.S):
        name, _, value = words.pop(0).partition("=")
        variables[name] = value
    return Command(variables, [words[0].removeprefix(".venv/bin/"), *words[1:]] if words else [])
