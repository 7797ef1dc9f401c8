"""A model behind an OpenAI-compatible endpoint: OpenAI itself, vLLM, `transformers serve`.

The key is configured only by the name of an environment variable: it is sent to the server, and never written to a file
or a message.
"""

import os
import random
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from inscp.errors import RunError, UserError
from inscp.evaluation.spending import Spending, Usage, estimate_tokens, max_tokens
from inscp.optional import library
from inscp.records import Generation, Prompt

if TYPE_CHECKING:
    from openai import APIStatusError, OpenAI

_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 120.0  # seconds between two attempts; doubled each time
_PATIENCE = 30.0  # seconds for the first contact, whatever the timeout of answers
_RETRIED = (408, 409, 429)  # and 5xx: temporary failures


@dataclass(frozen=True)
class Server:
    """An OpenAI-compatible server, and the budget for its use.

    Args:
        address: URL of the API, most often ending in `/v1`.
        model: the server's name of the model; by default, for the model that is evaluated, the value of `--model`.
        key_env: name of the environment variable that holds the API key; if it is empty, no key is sent.
        concurrency: maximum number of simultaneous calls.
        retries: retries per failed call, with exponential backoff.
        timeout: seconds to wait for a response.
        prompt_price: price per million prompt tokens, in any currency.
        completion_price: price per million generated tokens.
        budget_calls: maximum calls per task and start of the program, retries included. The program stops before it
            exceeds them; rerun the same command to continue with a fresh budget.
        budget_money: the same limit in money, in the currency of the prices.
        options: additional keys of the request (`seed`, `max_completion_tokens`); null removes a key (`temperature`).
    """

    address: str
    model: str = ""
    key_env: str = "OPENAI_API_KEY"
    concurrency: int = 8
    retries: int = 5
    timeout: float = 300.0
    prompt_price: float = 0.0
    completion_price: float = 0.0
    budget_calls: int | None = None
    budget_money: float | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def made_by(self) -> dict[str, Any]:
        """What determines its answers, as far as the client knows."""
        return {"server": self.address, "model": self.model, "options": self.options}

    @property
    def key(self) -> str:
        return os.environ.get(self.key_env, "").strip()

    def check(self) -> None:
        """Check the configuration.

        Raises:
            UserError: it is invalid.
        """
        parts = urlsplit(self.address)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise UserError(self.address, "not the URL of a server", "Give one like https://api.openai.com/v1.")
        if parts.username is not None:  # it would end up in files
            fix = "Put it into an environment variable, and give the variable's name as key_env."
            raise UserError(parts.hostname or "address", "the URL contains a password", fix)
        if parts.query:  # which holds a key for some servers, and would end up in files as well
            raise UserError(parts.netloc, "the URL contains a query", "Remove it; a key goes into key_env.")
        if self.budget_money is not None and not (self.prompt_price or self.completion_price):
            what = "budget_money has no effect without prices"
            raise UserError(self.address, what, "Give prompt_price and completion_price, or budget_calls instead.")
        if not self.model:
            raise UserError(self.address, "no model is given", "Set `model` to the server's name of the model.")
        if self.concurrency < 1 or self.retries < 0:
            raise UserError(self.address, "concurrency is below 1, or retries below 0", "Raise it.")
        if not self.key.isascii() or any(character.isspace() for character in self.key):
            raise UserError(f"${self.key_env}", "it does not contain a valid key", "Set it to the key alone.")

    def most(self, prompt: Prompt, max_new_tokens: int) -> Usage:
        """The maximum usage of a call."""
        allowed = [self.options.get(name) or 0 for name in ("max_tokens", "max_completion_tokens")]
        return Usage(max_tokens(prompt), max(max_new_tokens, *allowed))

    def money(self, usage: Usage) -> float:
        return (usage.prompt_tokens * self.prompt_price + usage.completion_tokens * self.completion_price) / 1e6

    def estimate(self, prompts: Sequence[Prompt], max_new_tokens: int) -> str:
        """The estimated calls, tokens and price of these prompts, as text."""
        written = sum(self.most(prompt, max_new_tokens).completion_tokens for prompt in prompts)
        usage = Usage(estimate_tokens(prompts), written)
        return (
            f"{len(prompts):,} calls of {self.model} at {self.address}, about {usage.prompt_tokens:,} prompt tokens "
            f"and at most {written:,} generated tokens, about {self.money(usage):,.2f} in total"
        )


class _Unanswered(Exception):  # noqa: N818  # never shown
    """A call failed, and another try may succeed; `pause` is how many seconds the server asks to wait."""

    def __init__(self, why: str, pause: float = 0.0) -> None:
        super().__init__(why)
        self.pause = pause


class Chat:
    """Sends prompts to a server, several at once, within its budget.

    Args:
        server: the server.

    Raises:
        UserError: its configuration is invalid.
    """

    def __init__(self, server: Server) -> None:
        server.check()
        self.server, self.spending = server, Spending(server.money, server.budget_calls, server.budget_money)

    def ask(self, prompts: Sequence[Prompt], max_new_tokens: int) -> Iterator[tuple[int, Generation]]:
        """The answer to each prompt with the prompt's index, in order of arrival, at temperature 0.

        If a call fails for good, calls in progress are awaited, as they are paid for.

        Raises:
            UserError: no server, no access, a rejected request, or the budget is spent.
            RunError: no answer after all retries.
        """
        self.connect()
        stop, failure = threading.Event(), None

        def answer(prompt: Prompt) -> Generation | None:
            try:
                return self._answer(prompt, max_new_tokens, stop)
            except BaseException:
                stop.set()
                raise

        with ThreadPoolExecutor(self.server.concurrency, "chat") as pool:
            try:
                places = {pool.submit(answer, prompt): place for place, prompt in enumerate(prompts)}
                for future in as_completed(places):
                    if error := future.exception():
                        failure = failure or error
                    elif found := future.result():
                        yield places[future], found
            finally:
                stop.set()
        if failure:
            raise failure

    def connect(self) -> None:
        """Check that the server responds and accepts the key.

        Raises:
            UserError: it does not.
        """
        _ = self._client

    @cached_property
    def _client(self) -> "OpenAI":
        openai, server = library("openai", "eval"), self.server
        key = server.key or "none"  # the client requires one; a server without keys ignores it
        client = openai.OpenAI(base_url=server.address, api_key=key, timeout=server.timeout, max_retries=0)
        try:
            client.with_options(timeout=_PATIENCE).models.with_raw_response.list()
        except openai.APIConnectionError as error:
            what = f"no server responds ({self._reason(error)})"
            raise UserError(server.address, what, "Start it, or check the URL.") from None
        except openai.AuthenticationError:
            raise self._no_access() from None
        except openai.APIStatusError:  # it responds, and need not list its models
            pass
        return client

    def _answer(self, prompt: Prompt, max_new_tokens: int, stop: threading.Event) -> Generation | None:
        """The answer; None if `stop` is set."""
        tries, problem, pause = 1 + self.server.retries, _Unanswered(""), 0.0
        for attempt in range(tries):
            if stop.wait(pause):
                return None
            try:
                return self._call(prompt, max_new_tokens)
            except _Unanswered as error:
                problem = error
            backoff = _FIRST_PAUSE * 2**attempt * random.uniform(0.75, 1)  # jitter, so that retries do not coincide
            pause = min(max(problem.pause, backoff), _LONGEST_PAUSE)
        raise RunError(
            f"{self.server.address}: {self.server.model} gave no answer in {tries} tries ({problem}). "
            "Rerun the same command later; the answers so far are kept."
        )

    def _call(self, prompt: Prompt, max_new_tokens: int) -> Generation:
        openai = library("openai", "eval")
        most = self.server.most(prompt, max_new_tokens)
        with self.spending.call(most) as used:
            try:
                generation, usage = _read(self._send(prompt, max_new_tokens), prompt)
            except openai.APIStatusError as error:
                used.append(Usage(0, 0))  # a rejected call costs nothing
                raise self._refused(error) from None
            except (openai.APIConnectionError, ValueError) as error:
                raise _Unanswered(self._reason(error)) from None
            used.append(usage or most)
            return generation

    def _send(self, prompt: Prompt, max_new_tokens: int) -> Any:
        body = {"max_tokens": max_new_tokens, "temperature": 0, **self.server.options}
        extra_body = {key: value for key, value in body.items() if value is not None}
        if prompt[0].role == "document":
            text, model = prompt[0].text, self.server.model
            return self._client.completions.create(model=model, prompt=text, extra_body=extra_body)
        messages: Any = [{"role": turn.role, "content": turn.text} for turn in prompt]
        return self._client.chat.completions.create(model=self.server.model, messages=messages, extra_body=extra_body)

    def _refused(self, error: "APIStatusError") -> Exception:
        """The exception for an error status."""
        if error.status_code in (401, 403):
            return self._no_access()
        reason, where = self._reason(error), self.server.address
        if error.code == "insufficient_quota":
            return UserError(where, f"the account has no credit left ({reason})", "Top it up, or use another server.")
        if error.status_code in _RETRIED or error.status_code >= 500:
            return _Unanswered(reason, _seconds(error.response.headers.get("retry-after")))
        if error.status_code == 404:
            what = f"it does not serve {self.server.model}, or the URL is wrong ({reason})"
            return UserError(where, what, "Check `model`, and whether the URL must end in /v1.")
        return UserError(where, f"it rejects the request ({reason})", "Change options, or use another server.")

    def _no_access(self) -> UserError:
        """An error without the server's message, which may contain a part of the key."""
        variable = f"${self.server.key_env}"
        state = f"it rejects the key in {variable}" if self.server.key else f"it needs a key, but {variable} is empty"
        return UserError(self.server.address, state, f"Put a valid key into {variable}, or set another key_env.")

    def _reason(self, error: Exception) -> str:
        """What went wrong in one line, without the key, which the server may have repeated."""
        text = " ".join(f"{error} {error.__cause__ or ''}".split())
        return (text.replace(self.server.key, "…") if self.server.key else text)[:300]


def _seconds(header: str | None) -> float:
    try:
        return float(header or 0)
    except ValueError:  # a date
        return 0.0


def _read(reply: Any, prompt: Prompt) -> tuple[Generation, Usage | None]:
    """The answer in a reply, and the usage if it is reported.

    Raises:
        ValueError: the reply contains no answer.
    """
    try:
        choice, usage = reply.choices[0], reply.usage
        text = choice.text if prompt[0].role == "document" else choice.message.content
        used = Usage(int(usage.prompt_tokens), int(usage.completion_tokens)) if usage else None
    except (AttributeError, IndexError, TypeError) as error:
        raise ValueError("the reply is malformed") from error
    response = str(text or "").encode("utf-8", "replace").decode()  # JSON may contain half a surrogate pair
    n_tokens = used.completion_tokens if used else 0
    return Generation(prompt[-1].text, response, n_tokens, ended=choice.finish_reason == "stop"), used
