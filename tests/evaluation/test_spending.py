"""What a server takes is counted, and stops before it is more than the budget."""

import re
import time
from typing import Any

import pytest
from openai_server import CUT, OpenAIServer, Reply, questions, saying, serving

from inscp.errors import UserError
from inscp.evaluation.server import Chat, Server
from inscp.records import Generation, Turn


def chat_with(of: OpenAIServer, **options: Any) -> Chat:
    return Chat(Server(of.address, "some-model", **options))


def until_the_budget(chat: Chat, n: int) -> tuple[list[Generation], str]:
    """What comes before the budget is spent, and what is said then."""
    found: list[Generation] = []
    with pytest.raises(UserError) as caught:
        found.extend(answer for _, answer in chat.ask(questions(n), 16))
    return found, str(caught.value)


def test_retries_are_calls_and_the_one_that_the_budget_does_not_have_is_not_made() -> None:
    with saying(500, 500, "good") as fake:
        chat = chat_with(fake, budget_calls=7, concurrency=4)
        found, said = until_the_budget(chat, 20)
        assert re.fullmatch(r"budget: .*7 calls.*raise the budget.*", said)
        assert len(fake.asked) == chat.spending.calls == 7
        assert len(found) == 5


def test_a_budget_that_is_enough_does_not_stop_anything() -> None:
    with saying("good") as fake:
        assert (
            len(list(chat_with(fake, budget_calls=20, budget_money=1.0, prompt_price=1.0).ask(questions(20), 16))) == 20
        )


@pytest.mark.parametrize("written", [1, 16])
def test_money_is_spent_up_to_the_budget_and_never_above(written: int) -> None:
    """Every call may write 16 tokens at a price of 1 each; those that write fewer leave more for others."""
    usage = {"prompt_tokens": 10, "completion_tokens": written, "total_tokens": 10 + written}
    with serving(lambda _: time.sleep(0.005) or {"text": "good", "usage": usage}) as fake:
        chat = chat_with(fake, completion_price=1e6, budget_money=40, concurrency=8)
        _, said = until_the_budget(chat, 50)
        assert "the next call may exceed it" in said
        assert chat.spending.money == written * len(fake.asked)
        assert 40 - 16 < chat.spending.money <= 40


@pytest.mark.parametrize(("lost", "tokens"), [(CUT, 64), (500, 0)], ids=["cut", "refused"])
def test_a_reply_that_got_lost_counts_as_the_most_it_may_have_cost_and_a_refusal_as_nothing(
    lost: Reply, tokens: int
) -> None:
    with saying(lost, "good") as fake:
        chat = chat_with(fake, completion_price=1e6)
        list(chat.ask(questions(1), 64))
        assert chat.spending.money == tokens + 2


def test_a_reply_that_does_not_tell_its_tokens_counts_as_the_most() -> None:
    with saying({"text": "good", "usage": None}) as fake:
        chat = chat_with(fake, completion_price=1e6)
        list(chat.ask(questions(1), 64))
        assert chat.spending.money == 64


def test_an_estimate_has_calls_tokens_and_money() -> None:
    priced = Server("http://host/v1", "m", prompt_price=1.0, completion_price=2.0)
    asked = [(Turn("user", "x" * 3_000_000),)] * 2
    assert "2 calls of m at http://host/v1, about 2,000,000 prompt tokens" in priced.estimate(asked, 500_000)
    assert "at most 1,000,000 generated tokens, about 4.00" in priced.estimate(asked, 500_000)
