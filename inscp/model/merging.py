"""Merging models by arithmetic on their weights: no training, and usually only one model in memory.

The first model is loaded; then each tensor is read from every model, in fp32, and merged into the first. A model whose
files use other names than its parameters is loaded in full beside the first.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from inscp.data.special_tokens import control_tokens
from inscp.errors import UserError
from inscp.model.checkpoint import read_tensors, stored_tensors
from inscp.model.origin import read_origin
from inscp.model.weights import full_state_dict
from inscp.pretrained import (
    first_free_id,
    foreign_token,
    load_model,
    load_tokenizer,
    require_dense,
    ties_embeddings,
    weights_folder,
)

Merge = Callable[..., torch.Tensor]
"""Computes a tensor of the result from its name and the models' tensors, in fp32 and in the order of `models`."""


class Merging(ABC):
    """A method of merging models."""

    arm: str
    """The name of the method in comparisons."""

    @abstractmethod
    def models(self, model: str) -> tuple[str, ...]:
        """The models to merge, including `model`; the result has the tokenizer and settings of the first."""

    @abstractmethod
    def bind(self, models: tuple[str, ...], first: PreTrainedModel) -> Merge:
        """The arithmetic for `models`, of which `first` is loaded."""


@dataclass(frozen=True)
class Average(Merging):
    """The weighted mean of a model and its original (WiSE-FT, Wortsman et al. 2021, arXiv 2109.01903).

    Args:
        weight: weight of the trained model, in [0, 1]; the original has the rest.
        original: original model; by default the one recorded in the model's folder.
    """

    weight: float = 0.5
    original: str | None = None
    arm = "Average"

    def __post_init__(self) -> None:
        _require_share(self.weight)

    def models(self, model: str) -> tuple[str, ...]:
        return model, self.original or _original(model)

    def bind(self, models: tuple[str, ...], first: PreTrainedModel) -> Merge:
        return lambda _, adapted, original: torch.lerp(original, adapted, self.weight)


@dataclass(frozen=True)
class ChatVector(Merging):
    """A base model that learned a language, plus the difference between its family's chat and base models.

    `model + scale x (chat - base)` (Huang et al. 2023, arXiv 2310.04799). The result has the chat model's template.

    Args:
        chat: chat model of the family.
        base: base model of the chat model; by default the original recorded in the model's folder.
        scale: factor of the difference.
    """

    chat: str
    base: str | None = None
    scale: float = 1.0
    arm = "ChatVector"

    def models(self, model: str) -> tuple[str, ...]:
        return self.chat, model, self.base or _original(model)

    def bind(self, models: tuple[str, ...], first: PreTrainedModel) -> Merge:
        return lambda _, chat, adapted, base: adapted + self.scale * (chat - base)


@dataclass(frozen=True)
class ElChat(Merging):
    """Restores the chat abilities of a chat model that was adapted with plain text (arXiv 2412.11704).

    The blocks are the weighted mean of the model and its source chat model; embeddings and output layer stay the
    model's, except for the special tokens, including the template's, which get the source's. (The paper trained and
    merged the two outermost blocks on either side, with 0.3 to 0.5 of the source; here all were trained, and all are
    merged.)

    Args:
        weight: weight of the trained model in the blocks, in [0, 1].
        source: source chat model; by default the original recorded in the model's folder.
    """

    weight: float = 0.5
    source: str | None = None
    arm = "ElChat"

    def __post_init__(self) -> None:
        _require_share(self.weight)

    def models(self, model: str) -> tuple[str, ...]:
        return model, self.source or _original(model)

    def bind(self, models: tuple[str, ...], first: PreTrainedModel) -> Merge:
        tokenizer = load_tokenizer(models[1])
        special = tokenizer.convert_tokens_to_ids(control_tokens(tokenizer))
        names = _embedding_names(first)

        def merge(name: str, adapted: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
            if name not in names:
                return torch.lerp(source, adapted, self.weight)
            adapted[special] = source[special]
            return adapted

        return merge


def _require_share(weight: float) -> None:
    if not 0 <= weight <= 1:
        raise UserError("method.weight", f"{weight} is not between 0 and 1", "Give 0.5, say.")


def _original(model: str) -> str:
    origin = read_origin(model)
    if origin is None:
        fix = "Name the original model in the method's arguments."
        raise UserError(model, "it does not record its original model", fix)
    return origin.original


@torch.no_grad()
def merged(model: str, method: Merging, dtype: torch.dtype) -> PreTrainedModel:
    """The result of applying `method` to `model`, its weights in `dtype`.

    Rows of tokens that only the first model has (because its vocabulary was extended) are not changed.

    Raises:
        UserError: the models differ in shape, one has tokens that the first lacks, or one is quantized.
    """
    models = method.models(model)
    require_dense(models[0])
    tokenizers = [load_tokenizer(spec) for spec in models]
    for other, tokenizer in zip(models, tokenizers, strict=True):
        if (alien := foreign_token(tokenizer, tokenizers[0])) is not None:
            what = f"its vocabulary differs from that of {models[0]} ({alien!r})"
            raise UserError(other, what, "Merge models of one family, the first with all tokens of the others.")
    ties = [ties_embeddings(spec) for spec in models]
    for other, is_tied in zip(models, ties, strict=True):
        if is_tied != ties[0]:
            what = f"its output layer is {'' if is_tied else 'not '}tied to its embeddings, unlike that of {models[0]}"
            raise UserError(other, what, "Merge models of one family.")
    result = load_model(models[0], dtype)
    weights = dict(result.named_parameters())
    shared = dict.fromkeys(weights, slice(None))
    if len(sizes := set(map(first_free_id, tokenizers))) > 1:
        shared |= dict.fromkeys(_embedding_names(result), slice(min(sizes)))
    wanted = {name: weight[shared[name]].shape for name, weight in weights.items()}
    readers = [_reader(spec, models[0], wanted, shared) for spec in models]
    merge = method.bind(models, result)
    for name, weight in weights.items():
        weight[shared[name]] = merge(name, *(read(name) for read in readers))
    return result


def _embedding_names(model: PreTrainedModel) -> set[str]:
    """The parameter names of the embeddings and of the output layer."""
    layers = model.get_input_embeddings(), model.get_output_embeddings()
    outer = {id(tensor) for layer in layers for tensor in layer.parameters()}
    return {name for name, tensor in model.named_parameters() if id(tensor) in outer}


def _reader(
    spec: str, first: str, wanted: Mapping[str, torch.Size], shared: Mapping[str, slice]
) -> Callable[[str], torch.Tensor]:
    """A function that reads a tensor of `spec` by its name, in fp32.

    A model whose files use other names than its parameters (mixtures of experts, old formats) is loaded in full.

    Args:
        spec: the model.
        first: the model that is merged into.
        wanted: name -> shape of the part that is read.
        shared: name -> rows that all models have.

    Raises:
        UserError: it lacks a tensor of the first model, or has it in another shape.
    """
    folder = weights_folder(spec)
    stored = stored_tensors(folder)
    whole: Mapping[str, torch.Tensor] = {}
    if not wanted.keys() <= stored.keys():
        whole = full_state_dict(spec)
        stored = {name: tensor.shape for name, tensor in whole.items()}
    for name, shape in wanted.items():
        if name not in stored or torch.empty(stored[name], device="meta")[shared[name]].shape != shape:
            found = list(stored[name]) if name in stored else "missing"
            what = f"its {name} is {found}, but that of {first} is {list(shape)}"
            raise UserError(spec, what, "Merge models of one family and size.")

    def read(name: str) -> torch.Tensor:
        if whole:
            return whole[name][shared[name]].float()
        tensor = torch.empty(stored[name])
        read_tensors(folder, {name: tensor})
        return tensor[shared[name]]

    return read
