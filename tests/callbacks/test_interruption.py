"""What goes on with a training that was broken off."""

import sys

import pytest

from inscp.callbacks.interruption import how_to_go_on


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([], "rerun with --ckpt_path last to resume"),
        (["--ckpt_path", "step-2"], "rerun with --ckpt_path last to resume"),
        (["--ckpt_path", "last"], "rerun the same command to resume"),
        (["--ckpt_path=last"], "rerun the same command to resume"),
    ],
)
def test_an_option_that_was_given_is_not_asked_for(
    given: list[str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["inscp", "fit", "--config", "c.yaml", *given])
    assert how_to_go_on() == told
