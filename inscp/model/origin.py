"""Where a model that was made here comes from, as its folder records it."""

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inscp.model.checkpoint import is_first_rank
from inscp.pretrained import model_name, resolve, weights_fingerprint

ORIGIN = "inscp.json"
"""In an exported folder: its `Origin`."""
EXTENDED = "Extended"
"""The arm of a model that was given more tokens."""


@dataclass(frozen=True)
class Origin:
    """Where a model that was made here comes from: what the model card tells and what `export` needs.

    Attributes:
        pretrained: the model that it was made from, as configured.
        arm: the method.
        language: BCP 47 tag.
        training: what was configured (learning rate, row length, token budget, …) and the steps that this makes.
        data: the data report.
        held_out: held-out set -> loss in nats a token, before and after.
        adapter: the values of `LoRA`, where adapters were trained.
        before: where `pretrained` comes from, if it was made here too; also as the plain values of `asdict`.
        cost: of the training, the values of `inscp.cost.ledger.Cost`; empty where nothing was counted.
        weights: where adapters were trained or it was the teacher, the `weights_fingerprint` of `pretrained`.
    """

    pretrained: str
    arm: str
    language: str
    training: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    held_out: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    adapter: Mapping[str, Any] | None = None
    before: "Origin | None" = None
    cost: Mapping[str, Any] = field(default_factory=dict)
    weights: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.before, Mapping):
            object.__setattr__(self, "before", Origin(**self.before))

    @property
    def stages(self) -> list["Origin"]:
        """One after the other, what was done to the original model."""
        return [*(self.before.stages if self.before else []), self]

    @property
    def original(self) -> str:
        """The model that was not made here."""
        return self.stages[0].pretrained

    @property
    def base_model(self) -> str:
        """The original model's short name."""
        return model_name(self.original)

    @property
    def arms(self) -> str:
        """The methods of all stages."""
        return " + ".join(stage.arm for stage in self.stages)

    @property
    def has_untrained_tokens(self) -> bool:
        """Whether the vocabulary was extended, and nothing has trained the rows of the new tokens since."""
        is_raw = False
        for stage in self.stages:
            trains_all = "steps" in stage.training and not stage.adapter
            is_raw = stage.arm == EXTENDED or (is_raw and not trains_all)
        return is_raw

    @property
    def name(self) -> str:
        """What a person calls it: methods, model and language."""
        return f"{self.arms} {self.base_model} {self.language}".strip()


def read_origin(spec: str) -> Origin | None:
    """What the folder of a model that was made here says of it; None of any other model."""
    return origin_in(Path(resolve(spec)[0]))


def origin_in(folder: Path) -> Origin | None:
    """What is said in a folder, with the model or without it, of how it was made; None where nothing is."""
    path = folder / ORIGIN
    return Origin(**json.loads(path.read_text("utf-8"))) if path.is_file() else None


def title(spec: str) -> str:
    """What a person calls a model, whether it was made here or not."""
    origin = read_origin(spec)
    return origin.name if origin else model_name(spec)


def warn_of_other_weights(origin: Origin, pretrained: str) -> None:
    """Warn if `pretrained` has changed since the training began.

    Args:
        origin: of the checkpoint.
        pretrained: the model whose adapters it holds, or who was its teacher.
    """
    if is_first_rank() and origin.weights and weights_fingerprint(pretrained) != origin.weights:
        what = f"{pretrained} has changed since this run began; the trained weights may no longer fit it"
        warnings.warn(what, stacklevel=2)
