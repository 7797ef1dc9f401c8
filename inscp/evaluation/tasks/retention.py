"""Retention: how much of the original model is preserved in the model made from it."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from inscp.data.pipeline import as_sources
from inscp.data.sources import ReadReport, Source, read_records
from inscp.data.special_tokens import encode_plain, encode_plain_batch
from inscp.data.tagging import HELD_OUT, PlainTagger, Tagger
from inscp.data.template import answer_left_context, common_prefix_length
from inscp.data.tokenization import tokenize
from inscp.errors import UserError
from inscp.evaluation.caching_model import CachingModel
from inscp.evaluation.generation import encode
from inscp.evaluation.items import Item
from inscp.evaluation.local_model import LocalModel
from inscp.evaluation.prompts import evenly_spaced, read_table, text_of
from inscp.evaluation.task import Task
from inscp.model.end_tokens import end_token_ids
from inscp.model.likelihood import pack_row
from inscp.model.origin import read_origin
from inscp.pretrained import foreign_token, longest_input, resolve
from inscp.records import IGNORED, Generation, LeftContext, Prompt, Record, TokenSequence, Turn


@dataclass(kw_only=True)
class Retention(Task):
    """Held-out perplexity, and how far the model has moved from the original.

    `held_out/SET/perplexity`, `/loss` (nats per token) and `/bits_per_byte` (comparable across vocabularies) of text as
    the assistant's turn after an empty user turn, as in validation during training, or as `tagger` presents it. With
    prompts and an original model: `kl`, the Kullback-Leibler divergence KL(original || model) in nats per token over
    the original's greedy answers, in its tokens, including the end of a finished turn; `agreement`, the fraction of the
    original's greedy tokens before the first difference; and `same_answer`.

    Args:
        held_out: held-out sets by name, each a source, as in `data.validation`.
        tagger: how their texts are presented; by default in the chat template, or without one for a base model.
            `PlainTagger` presents them as in plain continual pre-training.
        prompts: file of chat prompts, in any language.
        prompt_field: field of the prompt.
        limit: maximum number of prompts, spread evenly over the file.
        original: model to compare with; by default the original recorded in the model's folder.
        max_new_tokens: maximum tokens per answer.
    """

    source = "arXiv 2405.20175"
    licence = "CC0-1.0"
    version = 3  # the end of the original's turn is part of its answer
    needs_likelihoods = True

    held_out: dict[str, str | Source] = field(default_factory=dict)
    tagger: Tagger | None = None
    prompts: str | None = None
    prompt_field: str = "prompt"
    limit: int | None = None
    original: str | None = None
    max_new_tokens: int = 128

    @property
    def chats(self) -> bool:
        return bool(self.prompts and self.original)  # by default a base model has no original, and is not prompted

    @property
    def settings(self) -> dict[str, Any]:
        return super().settings | {"tagger": self.tagger and repr(self.tagger)}  # includes its class

    @property
    def item_metrics(self) -> list[str]:
        of_sets = [f"held_out/{name}/{of}" for name in self.held_out for of in ("perplexity", "loss", "bits_per_byte")]
        return [*of_sets, *(("kl", "agreement", "same_answer") if self.prompts else ())]

    def check(self) -> None:
        if not (self.held_out or self.prompts):
            raise UserError("Retention", "neither held_out nor prompts is given", "Give one of them.")
        self._questions()
        if self.original:
            resolve(self.original)
        for given in self.held_out.values():
            list(_records(given))

    def _questions(self) -> list[Prompt]:
        rows = evenly_spaced(read_table(self.prompts), self.limit) if self.prompts else []
        return [(Turn("user", text_of(position, row, [self.prompt_field])),) for position, row in rows]

    def items(self, model: CachingModel) -> list[Item]:
        items = [item for name, given in self.held_out.items() for item in self._held_out(model, name, given)]
        if (questions := self._questions()) and (original := self._original(model.spec)):
            items += self._against(model, original, questions)
        return items

    def _original(self, spec: str) -> str | None:
        origin = None if self.original else read_origin(spec)
        return origin.original if origin else self.original

    def _held_out(self, model: CachingModel, name: str, given: str | Source) -> list[Item]:
        by_default = HELD_OUT if model.tokenizer.chat_template else PlainTagger()
        tag = (self.tagger or by_default).bind(model.tokenizer)
        documents = [document for record in _records(given) for document in tag(record)]
        longest = min(_WINDOW, longest_input(model.spec))
        cut: list[list[TokenSequence]] = []  # by document, which another vocabulary may cut differently
        for piece in tokenize(documents, model.tokenizer, longest, _refuse):
            if piece.part == 1:
                cut.append([])
            if piece.n_targets:
                cut[-1].append(piece)
        cut = [pieces for pieces in cut if pieces]
        nlls = iter(model.nlls(f"held-out {name}", list(chain.from_iterable(cut))))
        return [self._whole(model, name, pieces, sum(float(next(nlls)) for _ in pieces)) for pieces in cut]

    @staticmethod
    def _whole(model: CachingModel, name: str, pieces: Sequence[TokenSequence], nll: float) -> Item:
        """The item of a held-out document, from its pieces and their negative log-likelihood."""
        loss, bits = f"held_out/{name}/loss", f"held_out/{name}/bits_per_byte"
        n_targets = sum(piece.n_targets for piece in pieces)
        values, weights = {loss: nll / n_targets}, {loss: float(n_targets)}
        said = [piece.input_ids[1:][piece.labels[1:] != IGNORED] for piece in pieces]  # the first is not predicted
        if n_bytes := sum(len(str(model.tokenizer.decode(ids, skip_special_tokens=True)).encode()) for ids in said):
            values[bits], weights[bits] = nll / math.log(2) / n_bytes, float(n_bytes)
        # Without the folder, which differs between machines.
        return Item(f"{name}: {Path(pieces[0].source).name} {pieces[0].part}", values, weights)

    def _against(self, model: CachingModel, original: str, questions: Sequence[Prompt]) -> list[Item]:
        if not isinstance(model.backend, LocalModel):
            raise UserError(
                "Retention", "a server provides no likelihoods to compare", "Remove the prompts or the server."
            )
        backend = model.backend.like(original)
        if (alien := foreign_token(backend.tokenizer, model.tokenizer)) is not None:
            what = f"its vocabulary differs from that of the original {original} ({alien!r})"
            raise UserError(model.spec, what, "Remove Retention's prompts, or name the right original.")
        before = model.with_backend(backend, "original").generate("prompts, original", questions, self.max_new_tokens)
        after = model.generate("prompts, this model", questions, self.max_new_tokens)
        # Any end token will do: the predictions at its position depend only on the tokens before it.
        end = end_token_ids(backend.loss.model, backend.tokenizer)[0]
        left_context, items = answer_left_context(backend.tokenizer), []
        for question, old, new in zip(questions, before, after, strict=True):
            sequence = _answered(backend.tokenizer, question, old, left_context, end)
            worth: dict[str, bool | float] = {"same_answer": old.response == new.response}
            worth["agreement"] = _agreement(backend.tokenizer, old.response, new.response)
            weights = {}
            if sequence.n_targets:
                worth["kl"], weights["kl"] = _divergence(backend, model.backend, sequence), sequence.n_targets
            shown = {"prompt": old.prompt, "original": old.response, "response": new.response}
            items.append(Item(f"prompt: {old.prompt}", worth, weights, shown))
        return items


_WINDOW = 2048


def _refuse(position: str, why: str) -> None:
    raise UserError(position, why, "Fix or remove the record.")


def _records(given: str | Source) -> Iterator[Record]:
    for source in as_sources(given):
        yield from read_records(source, "error", ReadReport())


def _answered(
    tokenizer: PreTrainedTokenizerBase, question: Prompt, answer: Generation, left_context: LeftContext, end: int
) -> TokenSequence:
    asked = encode(tokenizer, question)
    said = encode_plain(tokenizer, answer.response, left_context)
    if answer.ended:
        said.append(end)
    ids = np.array(asked + said, dtype=np.int32)
    return TokenSequence(answer.prompt, ids, np.where(np.arange(len(ids)) < len(asked), IGNORED, ids))


def _agreement(tokenizer: PreTrainedTokenizerBase, before: str, after: str) -> float:
    old, new = encode_plain_batch(tokenizer, [before, after])
    return common_prefix_length(old, new) / len(old) if old else float(not new)


@torch.inference_mode()
def _divergence(original: LocalModel, model: LocalModel, sequence: TokenSequence) -> float:
    """Mean KL(original || model) over the sequence's targets, in nats; the softmax is fp32."""
    log_p, log_q = (_log_probabilities(backend, sequence) for backend in (original, model))
    # An extended vocabulary takes probability from the original's tokens, which counts as divergence. Models of one
    # family may be padded to different sizes, with rows that are not tokens.
    width = min(log_p.shape[1], log_q.shape[1])
    return float(torch.nn.functional.kl_div(log_q[:, :width], log_p[:, :width], reduction="batchmean", log_target=True))


def _log_probabilities(backend: LocalModel, sequence: TokenSequence) -> torch.Tensor:
    batch = pack_row([sequence], next(backend.loss.parameters()).device)
    return backend.loss.predictions(batch).logits.float().log_softmax(-1)
