"""What the tests of tracking share."""

import pytest

from pipeline.tracking import registry


@pytest.fixture(autouse=True)
def short_claims(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store of a test answers in milliseconds: no need to wait for seconds before aliases are moved."""
    monkeypatch.setattr(registry, "SECONDS_TO_SETTLE", 0.02)
