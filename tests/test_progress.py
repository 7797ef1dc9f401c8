"""What is told of long work is how far it is, and not how far the first piece of a batch is."""

import time

import pytest

from inscp.progress import ProgressLines


def test_a_line_is_of_the_whole_batch_that_is_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("inscp.progress.SECONDS_BETWEEN_LINES", 0.5)
    lines = ProgressLines("asking", 100, unit="items")
    for batch in range(2):
        time.sleep(0.6)
        for _ in range(50):
            lines.advance(1, 1, 1)
        if batch == 0:
            time.sleep(0.5)
    time.sleep(0.5)
    told = [line.split()[:2] for line in capsys.readouterr().err.splitlines()]
    assert told == [["asking", "50%"], ["asking", "100%"]]
