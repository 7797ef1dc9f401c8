"""The origin of a model made by this program, as recorded in its folder."""

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inscp.model.checkpoint import is_first_rank
from inscp.pretrained import model_name, resolve, weights_fingerprint

ORIGIN = "inscp.json"
"""The file of the `Origin` in an exported folder."""
EXTENDED = "Extended"
"""The arm of a model whose vocabulary was extended."""


@dataclass(frozen=True)
class Origin:
    """The origin of a model made by this program: the contents of its model card, and what `export` needs.

    Attributes:
        pretrained: the model that it was made from, as configured.
        arm: the method.
        language: BCP 47 tag.
        training: the configuration (learning rate, row length, token budget, …) and the number of steps.
        data: the data report.
        held_out: held-out set -> loss in nats per token, before and after.
        adapter: the values of `LoRA`, if adapters were trained.
        before: the origin of `pretrained`, if this program made it too; also accepted as the plain values of `asdict`.
        cost: the values of `inscp.cost.ledger.Cost` for the training run; empty if not counted.
        weights: the `weights_fingerprint` of `pretrained`, if adapters were trained or it was the teacher.
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
        """The stages by which the original model became this one, in order."""
        return [*(self.before.stages if self.before else []), self]

    @property
    def original(self) -> str:
        """The model that the first stage started from."""
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
        """Whether the vocabulary was extended and the rows of the new tokens have not been trained since."""
        is_raw = False
        for stage in self.stages:
            trains_all = "steps" in stage.training and not stage.adapter
            is_raw = stage.arm == EXTENDED or (is_raw and not trains_all)
        return is_raw

    @property
    def name(self) -> str:
        """The name shown to users: methods, model and language."""
        return f"{self.arms} {self.base_model} {self.language}".strip()


def read_origin(spec: str) -> Origin | None:
    """The origin of a model made by this program; None for any other model."""
    return origin_in(Path(resolve(spec)[0]))


def origin_in(folder: Path) -> Origin | None:
    """The origin recorded in a folder, which need not contain the model; None if there is none."""
    path = folder / ORIGIN
    return Origin(**json.loads(path.read_text("utf-8"))) if path.is_file() else None


def title(spec: str) -> str:
    """The name of a model shown to users, whether this program made it or not."""
    origin = read_origin(spec)
    return origin.name if origin else model_name(spec)


def warn_of_other_weights(origin: Origin, pretrained: str) -> None:
    """Warn if `pretrained` has changed since the training began.

    Args:
        origin: origin of the checkpoint.
        pretrained: the model beneath the checkpoint's adapters, or its teacher.
    """
    if is_first_rank() and origin.weights and weights_fingerprint(pretrained) != origin.weights:
        what = f"{pretrained} has changed since this run began; the trained weights may no longer fit it"
        warnings.warn(what, stacklevel=2)
