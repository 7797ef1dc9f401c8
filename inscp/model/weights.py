"""Loading pretrained weights into a sharded model: no rank holds all of them, unless names must be converted."""

from itertools import chain
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from transformers import PreTrainedModel

from inscp.model.adapters import original_name
from inscp.model.checkpoint import is_first_rank, read_tensors, stored_dtypes, stored_tensors
from inscp.model.sharded import barrier_after
from inscp.pretrained import load_model, weights_folder


def materialise(root: torch.nn.Module, device: torch.device) -> None:
    """Allocate storage on `device` for meta tensors, without values; other tensors stay where sharding put them."""
    root._apply(lambda tensor: torch.empty_like(tensor, device=device) if tensor.is_meta else tensor)


def load_sharded(root: torch.nn.Module, model: PreTrainedModel, spec: str, device: torch.device) -> None:
    """Allocate a model that was built empty and sharded with `root` around it, and read the weights of `spec`."""
    materialise(root, device)
    model.tie_weights()
    read_weights(model, spec)


@torch.no_grad()
def read_weights(model: PreTrainedModel, spec: str) -> None:
    """Read the weights of `spec` into a model that was built empty and sharded.

    Each rank reads its slices of the safetensors files. A model whose files use other names than its parameters
    (mixtures of experts, old formats) is loaded by the first rank alone (`full_state_dict`) and sent to the others.

    Args:
        model: with storage for its parameters; may have adapters.
        spec: as for `inscp.pretrained.resolve`.
    """
    kept = model.state_dict().keys()  # of the buffers, those in files: a router's correction bias, a layer's scalar
    tensors = {name: tensor for name, tensor in chain(model.named_parameters(), model.named_buffers()) if name in kept}
    names = {original_name(name): name for name in tensors if ".lora_" not in name}
    folder = weights_folder(spec)
    stored = stored_tensors(folder)
    if all(stored.get(original) == tensors[name].shape for original, name in names.items()):
        read_tensors(folder, {original: tensors[name].detach() for original, name in names.items()})
        return
    with barrier_after():
        whole = full_state_dict(spec) if is_first_rank() else {}
    renamed = {names[name]: tensor for name, tensor in whole.items() if name in names}
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=False)
    set_model_state_dict(model, renamed, options=options)


def full_state_dict(spec: str) -> dict[str, Any]:
    """All of a model's tensors by the names of its parameters, in CPU memory.

    They are in the precision of its files, or in fp32 if these have several. For models whose files use other names, so
    that tensors cannot be read one by one.
    """
    found = stored_dtypes(weights_folder(spec))
    return load_model(spec, found.pop() if len(found) == 1 else torch.float32).state_dict()
