"""Prompts become generations: greedy responses of a model, batched."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch.distributed.fsdp import FSDPModule
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from inscp.data.template import prompt_ids
from inscp.model.export import end_token_ids
from inscp.records import Generation, Prompt


def encode(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """The ids after which the model begins: a `document` is text to go on with, else it is a conversation to answer."""
    if prompt[0].role == "document":
        return list(tokenizer(prompt[0].text, split_special_tokens=True)["input_ids"])
    return prompt_ids(tokenizer, [{"role": turn.role, "content": turn.text} for turn in prompt])


@contextmanager
def _greedy(model: PreTrainedModel) -> Iterator[None]:
    """Without the model's own settings of generation, which transformers takes wherever a call names no other."""
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    batch_size: int = 64,
) -> Iterator[tuple[int, Generation]]:
    """The model's greedy response to each prompt with the prompt's place, batch by batch, the shortest first.

    Greedy is the likeliest token each time: a penalty on repetition that comes with a model does not count.

    Args:
        model: in evaluation mode; one that is sharded over ranks is asked the same by all of them.
        tokenizer: with a chat template where a prompt is a conversation.
        prompts: conversations that end with a user's turn, or texts to go on with.
        max_new_tokens: responses are cut there; a response that was cut has not ended.
        batch_size: prompts at once; prompts of like length share a batch, padded on the left.
    """
    ends = end_token_ids(model, tokenizer)
    is_sharded = any(isinstance(module, FSDPModule) for module in model.modules())
    encoded = [encode(tokenizer, prompt) for prompt in prompts]
    by_length = sorted(range(len(prompts)), key=lambda index: len(encoded[index]))
    for start in range(0, len(prompts), batch_size):
        batch = by_length[start : start + batch_size]
        width = max(len(encoded[index]) for index in batch)
        pads = [width - len(encoded[index]) for index in batch]
        input_ids = [[ends[0]] * pad + encoded[index] for pad, index in zip(pads, batch, strict=True)]
        mask = [[0] * pad + [1] * (width - pad) for pad in pads]
        with _greedy(model):
            output = model.generate(  # type: ignore[operator]
                input_ids=torch.tensor(input_ids, device=model.device),
                attention_mask=torch.tensor(mask, device=model.device),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                eos_token_id=ends,
                pad_token_id=ends[0],
                synced_gpus=is_sharded,  # no rank stops while another one still needs its shards
            )
        for index, ids in zip(batch, output[:, width:].tolist(), strict=True):
            end = next((place for place, token in enumerate(ids) if token in ends), None)
            n_tokens = len(ids) if end is None else end + 1
            response = str(tokenizer.decode(ids[:n_tokens], skip_special_tokens=True))
            yield index, Generation(prompts[index][-1].text, response, n_tokens, ended=end is not None)
