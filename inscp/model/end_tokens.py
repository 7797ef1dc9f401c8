"""The tokens that end a model's answer."""

from contextlib import suppress

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from inscp.data.template import ChatTemplate
from inscp.errors import UserError
from inscp.pretrained import end_ids


def end_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token at which generation must stop: the model's own, the tokenizer's, the template's."""
    ids = end_ids(tokenizer, model.generation_config)
    if tokenizer.chat_template:
        with suppress(UserError):  # a template that tagging does not support; plain training does not need it
            ids |= ChatTemplate(tokenizer).closing_ids
    return sorted(ids)
