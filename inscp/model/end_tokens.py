"""At which tokens a model's answer ends."""

from contextlib import suppress

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from inscp.data.template import ChatTemplate
from inscp.errors import UserError


def end_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token at which generation must stop: the model's own, the tokenizer's, the template's end of turn."""
    own = model.generation_config.eos_token_id
    ids = set(own if isinstance(own, list) else [own]) | {tokenizer.eos_token_id}
    if tokenizer.chat_template:
        with suppress(UserError):  # a template that tagging cannot take, which a plain training does not need either
            ids.add(ChatTemplate(tokenizer).end_of_turn_id)
    return sorted(index for index in ids if index is not None)
