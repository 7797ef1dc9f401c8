"""Nothing that is put into the queue is lost, whenever it is put there."""

from collections.abc import Sequence
from threading import Event
from typing import cast

import pytest

from inscp.errors import RunError
from inscp.tracking.mlflow_run import MLflowRun
from inscp.tracking.outbox import Outbox
from inscp.tracking.pieces import Piece, Start, Text

ONE, TWO = Text("one", "one.txt"), Text("two", "two.txt")


class Run:
    """Takes what is sent as soon as it may."""

    start = Start("somewhere", "", "", {}, "", 0, None)

    def __init__(self) -> None:
        self.is_asked, self.may_take = Event(), Event()
        self.taken: list[Piece] = []

    def send(self, batch: Sequence[Piece]) -> None:
        self.is_asked.set()
        assert self.may_take.wait(60)
        self.taken += batch


def outbox_to(run: Run) -> Outbox:
    return Outbox(cast(MLflowRun, run))


def test_what_is_put_after_the_end_is_sent_by_the_next_one() -> None:
    run = Run()
    run.may_take.set()
    outbox = outbox_to(run)
    outbox.put(ONE)
    assert outbox.close(60) == []
    assert not outbox.is_open
    outbox.put(TWO)
    assert outbox.is_open
    assert outbox.close(60) == []
    assert run.taken == [ONE, TWO]


def closed_while_sending(run: Run) -> Outbox:
    """An outbox to the run that has handed both pieces back, the first of which is on its way."""
    outbox = outbox_to(run)
    outbox.put(ONE)
    outbox.put(TWO)
    assert run.is_asked.wait(60)
    assert outbox.close(0) == [ONE, TWO]
    return outbox


def test_what_could_not_be_sent_is_sent_in_its_order_with_what_is_put_later() -> None:
    run = Run()
    outbox = closed_while_sending(run)
    run.may_take.set()
    later = Text("three", "three.txt")
    outbox.put(later)
    assert outbox.close(60) == []
    assert run.taken == [ONE, TWO, later]


def test_of_what_was_handed_back_only_that_on_its_way_is_sent() -> None:
    run = Run()
    closed_while_sending(run)
    run.is_asked.clear()
    run.may_take.set()
    assert not run.is_asked.wait(0.3)
    assert run.taken == [ONE]


@pytest.mark.filterwarnings("ignore:refused")
def test_what_is_put_when_the_run_was_refused_is_handed_back() -> None:
    class Refusing(Run):
        def send(self, batch: Sequence[Piece]) -> None:
            raise RunError("refused")

    outbox = outbox_to(Refusing())
    outbox.put(ONE)
    assert outbox.close(60) == [ONE]
    outbox.put(TWO)
    assert outbox.close(60) == [ONE, TWO]
