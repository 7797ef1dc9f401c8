"""A trained model becomes a Hugging Face folder that any serving stack loads, with a model card."""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from inscp import __version__
from inscp.data.template import ChatTemplate
from inscp.errors import UserError
from inscp.model.adapters import LoRA, merged
from inscp.paths import written_whole
from inscp.pretrained import load_model, model_name, resolve, weights_fingerprint

ORIGIN = "inscp.json"
"""In an exported folder: its `Origin`."""


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
        weights: where adapters were trained, a digest of the files of `pretrained`; empty where they are on the Hub.
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


def assemble(origin: Origin, weights: Mapping[str, torch.Tensor]) -> PreTrainedModel:
    """The trained model in fp32: the original with what was trained in place, adapters merged.

    Args:
        origin: which model was trained, and how.
        weights: the trained weights by name.
    """
    model = load_model(origin.pretrained, torch.float32)
    if origin.adapter:
        warn_of_other_weights(origin)
        return merged(model, LoRA(**origin.adapter), weights)
    found = model.load_state_dict(dict(weights), strict=False, assign=True)
    if found.unexpected_keys:
        mend = "Give the checkpoint's own original model."
        raise UserError(origin.pretrained, f"it has no {found.unexpected_keys[0]}, which was trained", mend)
    model.tie_weights()
    return model


def warn_of_other_weights(origin: Origin) -> None:
    """Tell where adapters meet another model than they were trained on, which fits them as well."""
    if origin.weights and weights_fingerprint(origin.pretrained) != origin.weights:
        rank_zero_warn(f"{origin.pretrained} has changed since adapters were trained on it; they may not fit any more")


def export_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    origin: Origin,
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Write weights (safetensors), tokenizer, chat template, generation settings and model card into a new folder.

    The end tokens of the generation settings include the end-of-turn token, so that every server stops at it.

    Args:
        model: what is exported.
        tokenizer: its tokenizer.
        folder: must not be there yet.
        origin: what the model card tells.
        dtype: of the written weights.
    """
    require_new(folder)
    with written_whole(folder) as partial:
        written: dict[int, torch.Tensor] = {}  # a tied tensor is cast once, so that it is written once
        state = {
            name: written.setdefault(
                tensor.data_ptr(), tensor.detach().to("cpu", _stored_as(model, name, dtype, tensor))
            )
            for name, tensor in model.state_dict().items()
        }
        model.save_pretrained(partial, state_dict=state)
        tokenizer.save_pretrained(partial)
        _update_json(partial / "config.json", dtype=str(dtype).removeprefix("torch."))
        # Not from the model's config: else transformers may derive it anew from there, without our end tokens.
        own = {"_from_model_config": False, "eos_token_id": end_token_ids(model, tokenizer)}
        _update_json(partial / "generation_config.json", **own)
        (partial / ORIGIN).write_text(json.dumps(asdict(origin), indent=1, ensure_ascii=False) + "\n", "utf-8")
        (partial / "README.md").write_text(model_card(origin), "utf-8")
        for file in filter(Path.is_file, partial.rglob("*")):
            file.chmod(0o644)  # transformers leaves the weights readable by their owner alone, which no server is


def _stored_as(model: PreTrainedModel, name: str, dtype: torch.dtype, tensor: torch.Tensor) -> torch.dtype:
    """As a load in `dtype` has it: counts are no floats, and some tensors stay fp32 (by which experts are chosen)."""
    exact = model._keep_in_fp32_modules_strict or ()
    is_exact = any(re.search(rf"(^|\.){re.escape(part)}($|\.)", name) for part in exact)
    return tensor.dtype if is_exact or not tensor.is_floating_point() else dtype


def require_new(folder: Path) -> None:
    """Refuse to write over what is there.

    Raises:
        UserError: something is.
    """
    if folder.exists():
        raise UserError(str(folder), "it is there already", "Name a folder that is not.")


def _update_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | values, indent=2) + "\n", "utf-8")


def end_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token at which generation must stop: the model's own, the tokenizer's, the template's end of turn."""
    own = model.generation_config.eos_token_id
    ids = set(own if isinstance(own, list) else [own]) | {tokenizer.eos_token_id}
    if tokenizer.chat_template:
        with suppress(UserError):  # a template that tagging cannot take, which a plain training does not need either
            ids.add(ChatTemplate(tokenizer).end_of_turn_id)
    return sorted(index for index in ids if index is not None)


_METHODS = {
    "InsCP": "instruction continual pre-training (InstructionCP, arXiv 2405.20175): target-language text in the "
    "assistant's turn of the model's own chat template, after an empty user turn",
    "orgCP": "plain continual pre-training on target-language text, without the chat template",
    "SFT": "supervised fine-tuning on conversations",
    "Average": "averaging with the weights of the original model (WiSE-FT, arXiv 2109.01903)",
    "ChatVector": "adding a chat vector, the difference of a chat model and its base model (arXiv 2310.04799)",
    "ElChat": "merging with the source chat model and copying the weights of its special tokens (arXiv 2412.11704)",
}


def model_card(origin: Origin) -> str:
    """The model card, in the Hub's format: YAML front matter, then Markdown."""
    base = f"base_model: {name}\n" if (name := _hub_id(origin.original)) else ""
    stages = origin.stages
    heads = [f"Stage {number}, {stage.arm}: " if stages[1:] else "" for number, stage in enumerate(stages, 1)]
    sections = "".join(_sections(stage, head) for stage, head in zip(stages, heads, strict=True))
    return f"""---
language: "{origin.language.split("-")[0]}"
library_name: transformers
pipeline_tag: text-generation
{base}tags: [inscp, continual-pre-training, {", ".join(stage.arm for stage in stages)}]
---

# {origin.base_model}, adapted to {origin.language} ({origin.arms})

{origin.base_model} (`{origin.original}`) after {"; then ".join(_METHODS.get(s.arm, s.arm) for s in stages)}.
Made with inscp {__version__}. The original model's licence applies to these weights.
{sections}
## Use

```python
from transformers import pipeline

chat = pipeline("text-generation", "path/to/this/folder")
print(chat([{{"role": "user", "content": "…"}}], max_new_tokens=256)[0]["generated_text"][-1]["content"])
```

## Limits

Language was taught; facts were not checked. A small model invents facts in any language. Measure safety and
refusals in your own setting before you serve it.
"""


def _hub_id(spec: str) -> str | None:
    """What a model is called on the Hub, without its revision; None where it is somewhere else."""
    name = spec.partition("@")[0]
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return None if "/" not in name or Path(name).exists() else name


def _sections(stage: Origin, head: str) -> str:
    """What a stage was made with, under headings that begin with `head`."""
    data, sections = stage.data, {}
    if data:
        sources = "\n".join(f"- {name}: {count:,} records" for name, count in data["records"].items())
        sections["data"] = (
            f"{data['tokens']:,} tokens in {data['sequences']:,} documents, {data['rows']:,} packed rows\n"
            f"({data['padding']:.1%} padding), fingerprint `{data['fingerprint']}`.\n\n{sources}"
        )
    settings = "\n".join(f"| {name} | {value} |" for name, value in stage.training.items())
    sections["settings"] = f"| setting | value |\n|---|---|\n{settings}"
    if stage.held_out:
        losses = "\n".join(
            f"| {name} | {values['before']:.3f} | {_after(values)} |" for name, values in stage.held_out.items()
        )
        sections["loss of held-out text, nats a token"] = f"| set | before | after |\n|---|---|---|\n{losses}"
    titles = {title: head + title if head else title[0].upper() + title[1:] for title in sections}
    return "".join(f"\n## {titles[title]}\n\n{text}\n" for title, text in sections.items())


def _after(losses: Mapping[str, float]) -> str:
    return f"{losses['after']:.3f}" if "after" in losses else "not measured"
