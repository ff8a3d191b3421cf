"""Names in the code are the field's: no word of the former private vocabulary is a part of an identifier."""

import io
import keyword
import re
import subprocess
import tokenize

import pytest
from factories import PROJECT

FORMER = {
    "house", "room", "rooms", "door", "doors", "road", "ears", "mouth", "heard", "hear", "farewell", "told",
    "tells", "telling", "wish", "wishes", "peers", "gathered", "agreed", "patience", "patiently", "seal", "mend",
    "heart", "course", "stretch", "workshop", "journal", "ports", "looks", "looked", "findings",
    "halving", "served", "adopt", "adopted", "crown", "verdict", "challenge", "exhibit", "exhibits",
    "ink", "postman", "knock", "begun", "moved", "handed", "stamp", "drawn", "relay", "reigning", "rival", "theirs",
    "ours", "wound", "wounds", "lay",
}  # fmt: skip


def words(identifier: str) -> set[str]:
    """The words that an identifier in snake_case or CamelCase is made of, in lower case."""
    return {part.lower() for part in re.split(r"_|(?<=[a-z0-9])(?=[A-Z])", identifier) if part}


def test_identifiers_are_split_into_their_words() -> None:
    assert words("_RunChannel_of") == {"run", "channel", "of"}
    assert words("HTTPServer2") == {"httpserver2"}


@pytest.mark.parametrize("folder", ["dgunet", "pipeline", "tests", "benchmarks"])
def test_no_identifier_has_a_word_of_the_former_vocabulary(folder: str) -> None:
    listed = subprocess.run(
        ["git", "ls-files", f"{folder}/*.py"], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    found = set()
    for name in listed.stdout.splitlines():
        if not (PROJECT / name).exists():
            continue
        source = io.StringIO((PROJECT / name).read_text(encoding="utf-8"))
        for token in tokenize.generate_tokens(source.readline):
            if token.type == tokenize.NAME and not keyword.iskeyword(token.string):
                found |= {f"{name}: {token.string}" for word in words(token.string) & FORMER if word}
    assert not sorted(found)
