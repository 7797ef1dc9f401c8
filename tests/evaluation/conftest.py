"""Servers are asked with a key, and again at once where a call fails."""

import pytest
from openai_server import KEY


@pytest.fixture(autouse=True)
def asked_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inscp.evaluation.server._FIRST_PAUSE", 0.01)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
