"""The cost of calls to a paid server: counted, and stopped before it exceeds the budget."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from inscp.errors import UserError
from inscp.records import Prompt

_BYTES_PER_TOKEN = 3.0  # approximately, over languages and tokenizers
_TURN_TOKENS = 16  # maximum around each turn in a chat template


@dataclass(frozen=True, slots=True)
class Usage:
    """The tokens used by a call."""

    prompt_tokens: int
    completion_tokens: int


def max_tokens(prompt: Prompt) -> int:
    """The maximum number of tokens of a prompt in a chat template: a text has no more tokens than bytes."""
    return _n_bytes(prompt) + _TURN_TOKENS * (1 + len(prompt))


def estimate_tokens(prompts: Sequence[Prompt]) -> int:
    """The approximate number of tokens of prompts, from their bytes."""
    return round(sum(map(_n_bytes, prompts)) / _BYTES_PER_TOKEN)


def _n_bytes(prompt: Prompt) -> int:
    return sum(len(turn.text.encode()) for turn in prompt)


class Spending:
    """Calls, tokens and money so far, and what calls in progress may still cost. Thread-safe.

    Args:
        money: the price of a usage.
        budget_calls, budget_money: never exceeded; None is no limit.
    """

    def __init__(self, money: Callable[[Usage], float], budget_calls: int | None, budget_money: float | None) -> None:
        self._price, self._budget_calls, self._budget_money = money, budget_calls, budget_money
        self.calls, self.tokens, self.money = 0, 0, 0.0
        self._under_way, self._reserved = 0, 0.0
        self._changed = threading.Condition()

    def __str__(self) -> str:
        return f"{self.calls:,} calls, {self.tokens:,} tokens, {self.money:,.2f} in total"

    @contextmanager
    def call(self, most: Usage) -> Iterator[list[Usage]]:
        """Reserve `most` for a call once it fits into the budget; the caller appends the actual usage to the list.

        An empty list counts as `most`: a lost reply may have been paid for.

        Raises:
            UserError: it does not fit, and no call in progress may free a part of its reservation.
        """
        reserved, used = self._price(most), list[Usage]()
        with self._changed:
            self._changed.wait_for(lambda: self._fits(reserved) or not self._under_way)
            if not self._fits(reserved):
                fix = "The answers are kept; rerun the same command for a fresh budget, or raise the budget."
                raise UserError("budget", f"the next call may exceed it, after {self}", fix)
            self.calls += 1
            self._under_way += 1
            self._reserved += reserved
        try:
            yield used
        finally:
            self._end(reserved, used[0] if used else most)

    def _fits(self, money: float) -> bool:
        is_call_left = self._budget_calls is None or self.calls < self._budget_calls
        return is_call_left and (
            self._budget_money is None or self.money + self._reserved + money <= self._budget_money
        )

    def _end(self, reserved: float, used: Usage) -> None:
        with self._changed:
            self._under_way -= 1
            self._reserved -= reserved
            self.tokens += used.prompt_tokens + used.completion_tokens
            self.money += self._price(used)
            self._changed.notify_all()
