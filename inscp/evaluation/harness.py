"""The model under test, with the interface of lm-evaluation-harness (github.com/EleutherAI/lm-evaluation-harness).

Import this module only to run a benchmark: it imports the harness, which is an extra and takes seconds to load.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from jinja2 import TemplateError
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text

from inscp.data.rendering import render, render_prompt, require_chat_template
from inscp.errors import UserError
from inscp.evaluation.caching_model import CachingModel
from inscp.pretrained import longest_input
from inscp.records import IGNORED, Prompt, TokenSequence, Turn

_MAX_NEW_TOKENS = 256
_Encoded = tuple[Any, list[int], list[int]]


class HarnessModel(TemplateLM):
    """The model under test, as the harness calls it: text in, likelihoods and text out.

    Texts are encoded as by the harness's `hf` model. Two things differ: whether an answer is the greedy one is unknown
    (always reported as False), and a context that is cut on the left to the context length is one token shorter.

    Args:
        model: the model to prompt.
        what: name of the benchmark, for messages.
    """

    def __init__(self, model: CachingModel, what: str) -> None:
        super().__init__()
        self.tokenizer = model.tokenizer
        self._caching_model, self._what = model, what
        self._longest = longest_input(model.spec)
        self._conversations: dict[str, Prompt] = {}

    def answer(self, requests: Iterable[Instance]) -> None:
        """Append the model's answer to each request, each kind of request in one batch."""
        kinds: dict[str, list[Instance]] = {}
        for request in requests:
            kinds.setdefault(request.request_type, []).append(request)
        for kind, alike in kinds.items():
            for request, answer in zip(alike, getattr(self, kind)(alike), strict=True):
                request.resps.append(answer)

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """The token before a text without context."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids; no BOS is added if the text already has one."""
        if add_special_tokens is None:
            add_special_tokens = not string.startswith(str(self.tokenizer.decode(self.prefix_token_id)))
        return list(self.tokenizer.encode(string, add_special_tokens=add_special_tokens))

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """(log-likelihood in nats, False) of each continuation after its context."""
        return super().loglikelihood(requests, disable_tqdm)

    def _loglikelihood_tokens(self, requests: Sequence[_Encoded], **_: Any) -> list[tuple[float, bool]]:
        sequences = [self._sequence(context, continuation) for _, context, continuation in requests]
        return [(-float(nll), False) for nll in self._caching_model.nlls(self._what, sequences)]

    def _sequence(self, context: list[int], continuation: list[int]) -> TokenSequence:
        if not 0 < len(continuation) < self._longest:
            what = f"an answer of {len(continuation):,} tokens exceeds the context length ({self._longest:,})"
            raise UserError(self._what, what, "Use another benchmark, or fix its file.")
        input_ids = np.array((context + continuation)[-self._longest :], dtype=np.int32)
        labels = input_ids.copy()
        labels[: -len(continuation)] = IGNORED
        return TokenSequence(self._what, input_ids, labels)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        raise NotImplementedError  # its metrics are not means over documents, as `averaged_metrics` requires

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """The greedy continuation of each context, cut before the first of its stop strings.

        Raises:
            UserError: a continuation is to be sampled, or a context exceeds the context length.
        """
        asked: dict[int, list[int]] = {}
        for place, request in enumerate(requests):
            asked.setdefault(self._max_new_tokens(request.args[1]), []).append(place)
        answers = [""] * len(requests)
        for max_new_tokens, places in asked.items():
            prompts = [self._prompt(requests[place].args[0]) for place in places]
            generations = self._caching_model.generate(self._what, prompts, max_new_tokens)
            for place, generation in zip(places, generations, strict=True):
                answers[place] = postprocess_generated_text(
                    generation.response, requests[place].args[1].get("until"), None
                )
        return answers

    def _max_new_tokens(self, settings: Mapping[str, Any]) -> int:
        known = normalize_gen_kwargs(dict(settings), _MAX_NEW_TOKENS)  # definitions name the length in several ways
        if known["do_sample"] and known.get("temperature") != 0:
            raise UserError(self._what, "it samples its answers", "Use a benchmark with greedy answers.")
        return int(known["max_gen_toks"])

    def _prompt(self, context: str) -> Prompt:
        return self._conversations.get(context, (Turn("document", context),))

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as one text, by which `generate_until` finds the conversation again.

        Raises:
            UserError: the model has no chat template.
        """
        require_chat_template(self.tokenizer, self._caching_model.spec)
        if add_generation_prompt:  # as `generate_until` prompts
            rendered = partial(render_prompt, self.tokenizer, fix="Set chat_template to false.")
        else:
            rendered = partial(render, self.tokenizer, continue_final_message=True)
        try:
            text = rendered(chat_history)
        except (TemplateError, UserError):  # a template without system turns; the harness omits it, too
            chat_history = [turn for turn in chat_history if turn["role"] != "system"]
            text = rendered(chat_history)
        self._conversations[text] = tuple(Turn(turn["role"], turn["content"]) for turn in chat_history)  # type: ignore[arg-type]
        return text
