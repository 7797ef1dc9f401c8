"""What training changed: held-out perplexity and the model's answers, before and after, in one table."""

import gc
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer

from inscp.callbacks.prompting import PromptingCallback
from inscp.evaluation.labels import LABELS
from inscp.model.module import InsCPModule
from inscp.model.parallel import gathered_root
from inscp.model.precision import inference_dtype
from inscp.model.sharded import barrier_after
from inscp.model.strategies import FSDP2, auxiliary_model
from inscp.paths import write_json
from inscp.pretrained import load_tokenizer, with_its_code
from inscp.records import Generation
from inscp.tracking.tracker import tracker_of


class BeforeAfter(PromptingCallback):
    """Compares the original and the exported model on the same prompts in several languages, and prints a table.

    Both models are loaded from their folders, so that the table describes what a user gets: an export rounds weights
    and merges adapters, and rounding may undo small changes. Each model is placed on the devices like the model in
    training. If that is sharded, all ranks generate; otherwise only the first rank does, so that no other machine needs
    the exported folder.

    Attributes:
        folder: folder of the exported model.
        has_earlier_answers: whether a checkpoint contains the original model's results.
    """

    section = "before_after"

    def __init__(self, **prompting: Any) -> None:
        super().__init__(**prompting)
        self.folder, self.has_earlier_answers = Path(), False
        self._before: dict[str, dict[str, float]] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, InsCPModule)
        if self.questions and not self.has_earlier_answers:
            self._before = self._measured(trainer, pl_module.pretrained, "before")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, InsCPModule)
        own = with_its_code(pl_module.pretrained, str(self.folder))
        folder = trainer.strategy.broadcast(own)  # only the first rank knows it
        after = self._measured(trainer, folder, "after") if self.questions else {}
        if trainer.is_global_zero and (self.questions or pl_module.held_out):
            self._report(trainer, pl_module, after)

    def _report(self, trainer: Trainer, pl_module: InsCPModule, after: dict[str, dict[str, float]]) -> None:
        before = self._before | {"held-out text": _perplexities(pl_module.held_out_before)}
        after = after | {"held-out text": _perplexities(pl_module.held_out)}
        table = render_table(before, after)
        print(f"\n{table}", file=sys.stdout, flush=True)
        card = self.folder / "README.md"
        card.write_text(f"{card.read_text('utf-8')}\n## Before and after\n\n```\n{table}\n```\n", "utf-8")
        write_json(self.folder.parent / "before_after.json", {"before": before, "after": after})
        if tracker := tracker_of(trainer):
            tracker.log_text(table, "before_after.txt")

    def _measured(self, trainer: Trainer, spec: str, when: str) -> dict[str, dict[str, float]]:
        if isinstance(trainer.strategy, FSDP2):
            return self._measure(trainer, spec, when)
        with barrier_after():
            return self._measure(trainer, spec, when) if trainer.is_global_zero else {}

    def _measure(self, trainer: Trainer, spec: str, when: str) -> dict[str, dict[str, float]]:
        root, tokenizer = auxiliary_model(trainer.strategy, spec, inference_dtype()), load_tokenizer(spec)
        result = {}
        for language, prompts in self.questions.items():
            if trainer.is_global_zero:
                print(f"{when} training: {len(prompts)} prompts in {language}", file=sys.stderr, flush=True)
            with gathered_root(root):
                answers, found = self.ask(language, root.model, tokenizer)
            shares = {name: found[name] for name in _SHARES}
            result[f"answers to {language} prompts (n = {len(prompts)})"] = shares
            if tracker := tracker_of(trainer):
                step = 0 if when == "before" else trainer.global_step
                metrics = {f"before_after/{language}/{name}": value for name, value in shares.items()}
                tracker.log_at(metrics, step)
                tracker.log_table(_columns(answers), f"generations/{when}_{language}.json")
        del root
        gc.collect()  # FSDP's state and its shards refer to each other
        return result

    def state_dict(self) -> dict[str, Any]:
        return {"before": self._before}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._before = state_dict["before"]


def _perplexities(losses: Mapping[str, float]) -> dict[str, float]:
    return {f"{name} perplexity": math.exp(loss) for name, loss in losses.items()}


def _columns(answers: Sequence[Generation]) -> dict[str, list[Any]]:
    return {name: [getattr(answer, name) for answer in answers] for name in ("prompt", "response", "n_tokens", "ended")}


_SHARES = ("in_language", "ended", "looped", "copied")


def render_table(before: Mapping[str, Mapping[str, float]], after: Mapping[str, Mapping[str, float]]) -> str:
    """Groups of measures, before and after, as aligned text; fractions in percent, `–` for a missing value."""
    lines = [f"{'':<38}{'before':>9}{'after':>9}"]
    for group in {**before, **after}:  # a group that was added on resuming has no `before`
        lines.append(group)
        for name in {**before.get(group, {}), **after.get(group, {})}:
            numbers = (before.get(group, {}).get(name), after.get(group, {}).get(name))
            cells = ["–" if x is None else f"{x:.0%}" if name in _SHARES else f"{x:.2f}" for x in numbers]
            lines.append(f"  {LABELS.get(name, name):<36} {cells[0]:>8} {cells[1]:>8}")
    return "\n".join(lines)
