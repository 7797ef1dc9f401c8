"""Generates a model's responses to prompts in batches."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule
from transformers import (
    Cache,
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from inscp.data.special_tokens import encode_plain, encode_plain_batch
from inscp.data.template import answer_left_context, prompt_ids
from inscp.errors import UserError
from inscp.evaluation.kv_cache import PreallocatedLayer, preallocated
from inscp.model.attention import CACHE
from inscp.model.end_tokens import end_token_ids
from inscp.records import Generation, Prompt


def encode(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """The token ids of a prompt, after which the model generates.

    A `document` is a text to continue. Any other prompt is a conversation to answer or, if its last turn is the
    assistant's, to continue.
    """
    if prompt[0].role == "document":
        return encode_plain_batch(tokenizer, [prompt[0].text], add_special_tokens=True)[0]
    turns = [{"role": turn.role, "content": turn.text} for turn in prompt]
    if prompt[-1].role == "assistant":
        return prompt_ids(tokenizer, turns[:-1]) + encode_plain(
            tokenizer, prompt[-1].text, answer_left_context(tokenizer)
        )
    return prompt_ids(tokenizer, turns)


_TOKENS_AT_ONCE = 32
"""Tokens generated before finished rows leave the batch."""
_PADDING, _PROBE = 16, 4
"""Tokens of padding, and of a prompt after it, that test whether a model respects the padding mask."""
_TOLERANCE = 0.05
"""Relative to the norm of the next token's logits; in bf16, another order of summation changes them by 0.01."""
_SELECTABLE = (DynamicLayer, DynamicSlidingWindowLayer, PreallocatedLayer)


def require_temperature(temperature: float) -> None:
    """
    Raises:
        UserError: it is negative.
    """
    if temperature < 0:
        raise UserError("temperature", f"it must not be negative, but is {temperature}", "Give 1, or 0 for greedy.")


def sampling(temperature: float) -> dict[str, Any]:
    """Options of transformers' `generate`: greedy at temperature 0, else sampling from all tokens."""
    if temperature > 0:
        return {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    return {"do_sample": False}


@contextmanager
def default_generation_config(model: PreTrainedModel) -> Iterator[None]:
    """Replace the model's generation config, whose values apply to every option that a call does not set."""
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


class FollowFirstRank(LogitsProcessor):
    """Makes every rank of a sharded model take the first rank's most likely token.

    The ranks' logits may differ in the last digit. A rank that finished before another would leave that one waiting for
    its shards.
    """

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """[rows, V] -> 0 for the token of each row, -inf for all others."""
        chosen = scores.argmax(-1, keepdim=True)
        dist.broadcast(chosen, 0)
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen, 0.0)


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    batch_size: int = 64,
    temperature: float = 0.0,
) -> Iterator[tuple[int, Generation]]:
    """The model's response to each prompt with the prompt's index, batch by batch, the shortest first.

    Greedy decoding takes the most likely token, and sampling draws from the whole vocabulary: repetition penalties,
    top-k and top-p of the model's generation config do not apply.

    Args:
        model: in evaluation mode; if it is sharded, all ranks must pass the same prompts and decode greedily.
        tokenizer: with a chat template if a prompt is a conversation.
        prompts: conversations that end with a user turn, or texts to continue.
        max_new_tokens: maximum tokens per response; a response that was cut off has not ended.
        batch_size: prompts per batch; prompts of similar length share a batch, padded on the left.
        temperature: 0 is greedy; 1 samples from the model's distribution, with torch's global generator.
    """
    ends = end_token_ids(model, tokenizer)
    is_sharded = any(isinstance(module, FSDPModule) for module in model.modules())
    encoded = [encode(tokenizer, prompt) for prompt in prompts]
    lengths = list(map(len, encoded))
    pad = ends[0] if ends else 0
    may_pad = len(set(lengths)) == 1 or _respects_padding_mask(
        model, encoded[lengths.index(max(lengths))], pad, is_sharded
    )
    assert not (is_sharded and temperature), "ranks that share a model take the likeliest token"
    together = LogitsProcessorList([FollowFirstRank()] if is_sharded else [])
    for batch in _batches(lengths, batch_size, may_pad):
        width = max(len(encoded[index]) for index in batch)
        pads = [width - len(encoded[index]) for index in batch]
        input_ids = [[pad] * n + encoded[index] for n, index in zip(pads, batch, strict=True)]
        mask = [[0] * n + [1] * (width - n) for n in pads]
        # FSDP2 cannot gather again what was gathered in inference mode, if one rank holds the whole model.
        with default_generation_config(model), torch.inference_mode(not is_sharded):
            options = {"pad_token_id": pad, "eos_token_id": ends or None, **sampling(temperature)}
            options["logits_processor"] = together
            answers = _answers(model, torch.tensor(input_ids), torch.tensor(mask), max_new_tokens, ends, options)
        for index, ids in zip(batch, answers, strict=True):
            response = str(tokenizer.decode(ids, skip_special_tokens=True))
            ended = bool(ids) and ids[-1] in ends
            yield index, Generation(prompts[index][-1].text, response, len(ids), ended)


def _batches(lengths: Sequence[int], batch_size: int, may_pad: bool) -> Iterator[list[int]]:
    """The indices of prompts in batches, the shortest first; of one length per batch if padding is not allowed."""
    by_length = sorted(range(len(lengths)), key=lambda place: lengths[place])
    for _, alike in groupby(by_length, key=lambda place: None if may_pad else lengths[place]):
        places = list(alike)
        yield from (places[start : start + batch_size] for start in range(0, len(places), batch_size))


def _respects_padding_mask(model: PreTrainedModel, prompt: Sequence[int], pad: int, is_sharded: bool) -> bool:
    """Whether masked padding leaves the next token's logits unchanged, tested on the model itself.

    Models with a recurrent state (RWKV, MiniMax's linear attention) may read the padding too.
    """
    found = []
    for n in (0, _PADDING):
        ids = torch.tensor([[pad] * n + list(prompt[-_PROBE:])], device=model.device)
        mask = torch.ones_like(ids)
        mask[:, :n] = 0
        with default_generation_config(model):
            output = model.generate(  # type: ignore[operator]
                input_ids=ids, attention_mask=mask, max_new_tokens=1, do_sample=False, pad_token_id=pad,
                return_dict_in_generate=True, output_logits=True,
            )  # fmt: skip
        found.append(output.logits[0].float())
    heeds = (found[1] - found[0]).norm() <= _TOLERANCE * found[0].norm()
    if is_sharded:  # all ranks must make the same batches
        dist.broadcast(heeds, 0)
    return bool(heeds)


def _answers(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    mask: torch.Tensor,
    max_new_tokens: int,
    ends: Sequence[int],
    options: Mapping[str, Any],
) -> list[list[int]]:
    """The new tokens of each row up to its end, generated in steps, so that finished rows cost nothing more.

    Args:
        input_ids, mask: int64 [rows, width], padded on the left.
        options: how each token is chosen, and which tokens end a row.
    """
    answers: list[list[int]] = [[] for _ in input_ids]
    going = torch.arange(len(input_ids))
    cache, left, step = None, max_new_tokens, 1  # the first step creates the model's kind of cache
    while left > 0 and len(going):
        output = model.generate(  # type: ignore[operator]
            input_ids=input_ids.to(model.device),
            attention_mask=mask.to(model.device),
            **{CACHE: cache},
            max_new_tokens=min(left, step),
            return_dict_in_generate=True,
            **options,
        )
        new = output.sequences[:, input_ids.shape[1] :]
        for row, ids in zip(going.tolist(), new.tolist(), strict=True):
            end = next((place for place, token in enumerate(ids) if token in ends), len(ids))
            answers[row] += ids[: end + 1]
        left, step = left - new.shape[1], _TOKENS_AT_ONCE
        kept = torch.tensor(
            [row for row, place in enumerate(going) if answers[place][-1] not in ends], dtype=torch.long
        )
        going = going[kept]
        input_ids = output.sequences[kept]
        mask = torch.cat([mask[kept], torch.ones(len(kept), new.shape[1], dtype=mask.dtype)], 1)
        cache = _select_rows(output.get(CACHE), kept.to(model.device), len(new))
    return answers


def _select_rows(cache: Cache | None, rows: torch.Tensor, n_rows: int) -> Cache | None:
    """The cache of some of `n_rows` rows; None, so that the model recomputes it, if rows cannot be selected from its
    layers, or if it has no length (Mamba's state), without which transformers would feed all tokens again."""
    if type(cache) is not DynamicCache or not any(isinstance(layer, DynamicLayer) for layer in cache.layers):
        return None
    if len(rows) < n_rows:
        if not all(type(layer) in _SELECTABLE for layer in cache.layers):
            return None
        cache.batch_select_indices(rows)
    return preallocated(cache)
