"""The model card of a model made by this program."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from inscp import __version__
from inscp.model.origin import EXTENDED, Origin
from inscp.pretrained import REMOTE_CODE, licence_of

_METHODS = {
    "InsCP": "instruction continual pre-training (InstructionCP, arXiv 2405.20175): target-language text in the "
    "assistant's turn of the model's own chat template, after a user turn that is empty or a generic prompt (`user`)",
    "orgCP": "plain continual pre-training on target-language text, without the chat template",
    EXTENDED: "adding tokens of the language to the vocabulary (continued BPE training, arXiv 2512.03989), each "
    "initialised to the mean of the tokens that it replaces",
    "SFT": "supervised fine-tuning on conversations",
    "Average": "averaging with the weights of the original model (WiSE-FT, arXiv 2109.01903)",
    "ChatVector": "adding a chat vector, the difference of a chat model and its base model (arXiv 2310.04799)",
    "ElChat": "merging with the source chat model and copying the weights of its special tokens (arXiv 2412.11704)",
}

_WITHOUT_REASONING = """It was trained to answer without reasoning first. When serving it, disable reasoning in each
request; with vLLM: `"chat_template_kwargs": {"enable_thinking": false}`."""

_AFTER_AN_OPENING = """It was trained to answer after `{opening}`, which its chat template does not add to the prompt.
Append it to the prompt, or to the template's `add_generation_prompt`: it was not trained to answer without it."""


def model_card(origin: Origin, may_reason: bool = False, opening: str = "") -> str:
    """The model card, in the Hub's format: YAML front matter, then Markdown.

    Args:
        origin: origin of the model.
        may_reason: whether its template reasons before an answer unless this is disabled, as it was in training.
        opening: text that preceded every answer in training but that the template does not add to a prompt.
    """
    base = f"base_model: {name}\n" if (name := _hub_id(origin.original)) else ""
    licence = licence_of(origin.original)
    licensed = f"license: {json.dumps(licence)}\n" if licence else ""
    stages = origin.stages
    heads = [f"Stage {number}, {stage.arm}: " if stages[1:] else "" for number, stage in enumerate(stages, 1)]
    sections = "".join(_sections(stage, head) for stage, head in zip(stages, heads, strict=True))
    code = ", trust_remote_code=True" if origin.original.startswith(REMOTE_CODE) else ""
    option = ', tokenizer_encode_kwargs={"enable_thinking": False}' if may_reason else ""
    note = f"\n{_WITHOUT_REASONING}\n" if may_reason else ""
    note += "\n" + _AFTER_AN_OPENING.format(opening=json.dumps(opening)[1:-1]) + "\n" if opening else ""
    return f"""---
language: "{re.split("[-_]", origin.language)[0]}"
library_name: transformers
pipeline_tag: text-generation
{base}{licensed}tags: [inscp, continual-pre-training, {", ".join(stage.arm for stage in stages)}]
---

# {origin.base_model}, adapted to {origin.language} ({origin.arms})

{origin.base_model} (`{origin.original}`) after {"; then ".join(_METHODS.get(s.arm, s.arm) for s in stages)}.
Made with inscp {__version__}. The original model's licence{f" ({licence})" if licence else ""} applies to these
weights, and those of the texts below may.
{sections}
## Use

```python
from transformers import pipeline

chat = pipeline("text-generation", "path/to/this/folder"{code})
print(chat([{{"role": "user", "content": "…"}}], max_new_tokens=256{option})[0]["generated_text"][-1]["content"])
```
{note}
## Limits

Language was taught; facts were not checked. A small model invents facts in any language. Measure safety and
refusals in your own setting before you serve it.
"""


def _hub_id(spec: str) -> str | None:
    """A model's id on the Hub, without its revision; None if it is not from the Hub."""
    name = spec.removeprefix(REMOTE_CODE).partition("@")[0]
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return None if "/" not in name or Path(name).exists() else name


def _sections(stage: Origin, head: str) -> str:
    """A stage's data, settings and held-out losses, under headings that begin with `head`."""
    data, sections = stage.data, {}
    if data:
        licences = data.get("licences", {})
        sources = "\n".join(
            f"- {name}: {count:,} records, licence {licences.get(name, 'not stated')}"
            for name, count in data["records"].items()
        )
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
        sections["loss on held-out text, nats per token"] = f"| set | before | after |\n|---|---|---|\n{losses}"
    titles = {title: head + title if head else title[0].upper() + title[1:] for title in sections}
    return "".join(f"\n## {titles[title]}\n\n{text}\n" for title, text in sections.items())


def _after(losses: Mapping[str, float]) -> str:
    return f"{losses['after']:.3f}" if "after" in losses else "not measured"
