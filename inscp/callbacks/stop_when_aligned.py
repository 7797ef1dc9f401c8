"""Early stopping as soon as the model answers in the language, to save training tokens."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from inscp.callbacks.prompting import PromptingCallback
from inscp.callbacks.steps import ends_step
from inscp.callbacks.throughput import clock_paused, tokens_seen
from inscp.data.datamodule import data_of
from inscp.errors import UserError
from inscp.model.module import InsCPModule
from inscp.paths import write_json
from inscp.tracking.tracker import tracker_of

ALIGNMENT_FILE = "alignment.json"
"""The file in a run's folder with every measurement and the reason why training stopped."""
_ALIGNED, _ENDED, _RETAINED = "in_language_if_sound", "ended", "in_language"

Measures = dict[str, dict[str, float]]
"""Language -> measure (`in_language`, `ended`, `sound`, …) -> fraction."""


class StopWhenAligned(PromptingCallback):
    """Early stopping on generated answers: ends training once the model answers in the target language.

    At regular intervals the model answers the same prompts in several languages, and the fractions that
    `LanguageAlignment` defines are logged as `alignment/LANGUAGE/MEASURE`. Training stops, and the model is exported as
    usual, when both target-language fractions (well-formed answers in the language, ended turns) have reached their
    targets and plateaued, or when answers in another language fall below the floor. Well-formed means not empty,
    without loops, and not a copy of the prompt.

    Args:
        every_n_tokens: training tokens between two measurements, which are taken after an optimizer step.
        alignment: target for the fraction of well-formed answers that are in the language.
        ended: target for the fraction of answers that end their turn.
        tolerance: a fraction must rise by more than this to count as a gain.
        patience: number of consecutive measurements without a gain in either fraction before training stops.
        retention: floor for the fraction of answers in the prompt's language, for each of the other languages.
    """

    section = "stop_when_aligned"

    def __init__(
        self,
        every_n_tokens: int = 100_000,
        alignment: float = 0.95,
        ended: float = 0.5,
        tolerance: float = 0.02,
        patience: int = 2,
        retention: float = 0.9,
        **prompting: Any,
    ) -> None:
        super().__init__(**prompting)
        for name, count in {"every_n_tokens": every_n_tokens, "patience": patience}.items():
            if count < 1:
                raise UserError(f"{self.section}.{name}", f"{count} is not positive", "Give 1 or more.")
        shares = {"alignment": alignment, "ended": ended, "tolerance": tolerance, "retention": retention}
        for name, share in shares.items():
            if not 0 <= share <= 1:
                raise UserError(f"{self.section}.{name}", f"{share:g} is not between 0 and 1", "Give 0.9, say.")
        self._every = every_n_tokens
        self._targets = {_ALIGNED: alignment, _ENDED: ended}
        self._tolerance, self._patience, self._retention = tolerance, patience, retention
        self.folder = Path()
        self._history: list[dict[str, Any]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._history and self.questions and self._reason():  # it had stopped, and its export failed
            trainer.should_stop = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, InsCPModule)
        if not (self.questions and ends_step(trainer, batch_idx)):
            return
        tokens = tokens_seen(trainer)
        if tokens // self._every == self._measured_at // self._every:
            return
        with clock_paused(trainer):
            measures = trainer.strategy.broadcast(self._measure(trainer, pl_module))  # all ranks have generated
        self._history.append({"step": trainer.global_step, "tokens": tokens, "measures": measures})
        if tracker := tracker_of(trainer):
            tracker.log_at(_flat(measures), trainer.global_step)
        reason = self._reason()
        if trainer.is_global_zero:
            self._report(tokens, measures, reason)
        if reason:
            trainer.should_stop = True
            if tracker := tracker_of(trainer):
                tracker.log_at({"alignment/stopped_at_tokens": tokens}, trainer.global_step)
                tracker.log_hyperparams({"stopped": reason})

    @property
    def _measured_at(self) -> int:
        """Tokens at the last measurement."""
        return int(self._history[-1]["tokens"]) if self._history else 0

    def _measure(self, trainer: Trainer, module: InsCPModule) -> Measures:
        with module.generation_mode() as model:
            return {language: self.ask(language, model, data_of(trainer).tokenizer)[1] for language in self.questions}

    def _reason(self) -> str:
        """Why training should stop now; empty if it should continue."""
        (taught, now), *others = self._history[-1]["measures"].items()
        for language, measures in others:
            if measures[_RETAINED] < self._retention:
                return (
                    f"only {measures[_RETAINED]:.0%} of {language} prompts are answered in {language}, "
                    f"below the floor of {self._retention:.0%}"
                )
        if any(now.get(name, 0.0) < target for name, target in self._targets.items()):
            return ""
        values = {name: [one["measures"][taught].get(name, 0.0) for one in self._history] for name in self._targets}
        if not all(is_flat(series, self._patience, self._tolerance) for series in values.values()):
            return ""
        shares = f"{now[_ALIGNED]:.0%} of well-formed answers in it, {now[_ENDED]:.0%} end their turn"
        return f"{taught} has reached its targets and plateaued ({shares})"

    def _report(self, tokens: int, measures: Measures, reason: str) -> None:
        for language, found in measures.items():
            said = f"{found[_RETAINED]:.0%} in the language, {found[_ENDED]:.0%} end their turn"
            print(f"after {tokens:,} tokens, {language} prompts: {said}", file=sys.stderr, flush=True)
        if reason:
            print(f"training stops after {tokens:,} tokens: {reason}", file=sys.stderr, flush=True)
        whole = {"taught": next(iter(self.questions)), "history": self._history, "stopped": reason or None}
        try:
            write_json(self.folder / ALIGNMENT_FILE, whole)
        except OSError as error:  # checkpoints have the history too
            rank_zero_warn(f"{self.folder / ALIGNMENT_FILE} cannot be written ({error.strerror}); training continues")

    def state_dict(self) -> dict[str, Any]:
        return {"history": list(self._history)}  # a copy: it may grow while an asynchronous checkpoint is written

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        asked = [one["measures"].keys() for one in state_dict["history"]]
        has_others = bool(self.questions) and any(languages != self.questions.keys() for languages in asked)
        self._history = [] if has_others else list(state_dict["history"])


def is_flat(series: Sequence[float], patience: int, tolerance: float) -> bool:
    """Whether none of the last `patience` values is more than `tolerance` above the best before them."""
    before, last = series[:-patience], series[-patience:]
    return bool(before) and max(last) <= max(before) + tolerance


def _flat(measures: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    return {
        f"alignment/{language}/{name}": value for language, values in measures.items() for name, value in values.items()
    }
