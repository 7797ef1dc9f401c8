"""A model under test on a server."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from inscp.errors import UserError
from inscp.evaluation.server import Chat, Server
from inscp.records import Generation, Prompt, TokenSequence

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ServedModel:
    """A model under test that another program serves.

    Args:
        server: the server.
    """

    def __init__(self, server: Server) -> None:
        self._chat = Chat(server)
        self.spec = server.model

    @property
    def made_by(self) -> Mapping[str, Any]:
        return self._chat.server.made_by

    @classmethod
    def connected(cls, server: Server, model: str) -> "ServedModel":
        """A model on a server that responds; see `Chat.connect`.

        Args:
            server: the server.
            model: the server's name of the model, if `server.model` is empty.
        """
        served = cls(replace(server, model=server.model or model))
        served._chat.connect()
        return served

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        raise UserError(self._chat.server.address, "a server has no tokenizer", "Give the model's folder or Hub id.")

    def too_long(self, prompt: Prompt, max_new_tokens: int) -> str | None:
        """None: only the server knows."""
        return None

    def generate(self, prompts: Sequence[Prompt], max_new_tokens: int) -> Iterator[tuple[int, Generation]]:
        """As `Chat.ask`; a `document` is continued, through the completions endpoint.

        Raises:
            UserError: an answer is to be continued, which few servers support.
        """
        if any(prompt[-1].role == "assistant" for prompt in prompts):
            what = "this benchmark gives the beginning of the answer, which a server cannot continue"
            raise UserError(self._chat.server.address, what, "Remove it, or give the model's folder or Hub id.")
        return self._chat.ask(prompts, max_new_tokens)

    def nlls(self, sequences: Sequence[TokenSequence]) -> Iterator[tuple[int, float]]:
        """Always a `UserError`: servers provide no likelihoods."""
        what = "this task measures likelihoods, which a server does not provide"
        raise UserError(self._chat.server.address, what, "Remove the task, or give the model's folder or Hub id.")
