"""Checks of a training configuration: trainer options that are set elsewhere or would harm the training, texts,
languages, and whether the model can be prompted."""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from inscp.callbacks.checkpoints import Checkpoints
from inscp.data.datamodule import InsCPDataModule
from inscp.data.pipeline import as_sources
from inscp.data.rendering import require_chat_template
from inscp.data.sources import ReadReport, read_records, require_source
from inscp.errors import UserError
from inscp.model.module import InsCPModule
from inscp.model.precision import COMPUTE_DTYPES, has_fast_bf16
from inscp.model.strategies import require_strategy
from inscp.text.language import LanguageIdentifier, primary

_MINIMUM: dict[str, tuple[float, ...]] = {
    "max_steps": (1, -1),
    "devices": (1, -1),
    "num_nodes": (1,),
    "accumulate_grad_batches": (1,),
    "gradient_clip_val": (0,),
    "val_check_interval": (1e-6,),
}
"""The smallest sensible number, and other values that have a meaning in Lightning."""
_LENGTH_LIMITS: dict[str, tuple[Any, ...]] = {
    "max_epochs": (1,),
    "limit_train_batches": (None, 1.0),
    "overfit_batches": (0.0,),
    "fast_dev_run": (False,),
    "max_time": (None,),
}
"""Options that would end a training run other than by its steps or data, and the values with which they do not."""


_SAMPLED_RECORDS, _MIN_CHARACTERS, _MISMATCH_SHARE, _FEW = 50, 8, 0.8, 10
"""Records per source whose language is checked, characters that suffice to identify it, the fraction of texts that
counts as a mismatch, and the number of texts needed for a fraction."""


def require_supported(
    trainer: Mapping[str, Any],
    module: InsCPModule,
    data: InsCPDataModule,
    checkpoints: Checkpoints,
) -> None:
    """Check that a training configuration is supported, before anything is made or read.

    Args:
        trainer: the section, with every key.
        module, data, checkpoints: of the training run.

    Raises:
        UserError: it is not.
    """
    require_trainer(trainer)
    checkpoints.require_measured(data.validation)
    if module.distillation and not data.replay:
        fix = "Set data.replay, as in configs/data/replay_en.yaml, or remove model.distillation."
        raise UserError("model.distillation", "it needs replayed rows, and there are none", fix)


def require_texts(module: InsCPModule, data: InsCPDataModule) -> None:
    """Check that the training texts exist.

    Raises:
        UserError: one is missing.
    """
    data.require_sources()
    for source in as_sources(module.shield.sources) if module.shield else ():
        require_source(source)


def require_trainer(trainer: Mapping[str, Any]) -> None:
    """
    Args:
        trainer: the section, with every key.

    Raises:
        UserError: it contains an unsupported value.
    """
    for name, harmless in _LENGTH_LIMITS.items():
        if (type(trainer[name]), trainer[name]) not in [(type(value), value) for value in harmless]:  # 1 is not 1.0
            fix = "Remove it, and set data.epochs, data.token_budget or trainer.max_steps."
            raise UserError(f"trainer.{name}", "the length of a run is set by its steps or data", fix)
    for name, (least, *others) in _MINIMUM.items():
        if isinstance(value := trainer[name], int | float) and value < least and value not in others:
            raise UserError(f"trainer.{name}", f"{value} is too small", f"Give {least:g} or more, or remove it.")
    if trainer["barebones"]:
        raise UserError("trainer.barebones", "it would keep nothing of the training run", "Remove it.")
    if trainer["precision"] is not None and str(trainer["precision"]) not in COMPUTE_DTYPES:
        fix = "Use bf16-mixed or 32-true, which keep fp32 weights."
        raise UserError("trainer.precision", f"{trainer['precision']} is not supported", fix)
    require_strategy(trainer["strategy"])


def warn_of_precision(precision: str | None) -> None:
    """Warn if a run trains in bf16 on hardware where that takes two to a hundred times as long as in fp32."""
    if COMPUTE_DTYPES.get(str(precision)) == torch.bfloat16 and not has_fast_bf16():
        rank_zero_warn("this hardware computes more slowly in bf16 than in fp32: set trainer.precision to 32-true")


def warn_of_languages(data: InsCPDataModule) -> None:
    """Warn if the texts, or the user prompts before them, look like another language than `data.language`.

    Also warn if the identifier does not know the language well, as answers are identified with it: lid.176 takes every
    second Swahili sentence for another language.
    """
    identifier = LanguageIdentifier()
    with suppress(UserError):  # it is not installed, or does not know the language
        identifier.require_known(data.language)
        language = primary(data.language)
        texts = [
            turn.text
            for source in data.train_sources
            for record in islice(read_records(source, "skip", ReadReport()), _SAMPLED_RECORDS)
            for turn in record.turns
        ]
        requests = getattr(data.tagger, "user", "")
        shown = {"data.train": texts, "data.tagger.user": [requests] if isinstance(requests, str) else requests}
        for key, of in shown.items():
            found = Counter(identifier.identify(text, [language]) for text in of if len(text) >= _MIN_CHARACTERS)
            (other, count), total = found.most_common(1)[0] if found else ("und", 0), found.total()
            if other not in (language, "und") and count > _MISMATCH_SHARE * total:
                what = f"{count} of {total} texts of {key} look like {other}"
                rank_zero_warn(f"{what}, but data.language is {data.language}: correct one of the two")
            elif total >= _FEW and found[language] < _MISMATCH_SHARE * total:
                what = f"only {found[language]} of {total} texts of {key} are recognised as {language}"
                fix = "lid_model: cis-lmu/glotlid (before_after, evaluate) may know the language better"
                rank_zero_warn(f"{what}; the languages of answers will be misidentified as well; {fix}")


def require_promptable(data: InsCPDataModule, prompted: Mapping[str, Sequence[str]]) -> None:
    """Check that the model can be prompted; warn if a section has no prompts in the training language.

    Args:
        data: data of the training run.
        prompted: section -> the languages of its prompts.

    Raises:
        UserError: it has no chat template.
    """
    for name, languages in prompted.items():
        if not languages:
            continue
        fix = f", or disable prompting by setting {name}.prompts to null"
        require_chat_template(data.tokenizer, data.pretrained, fix)
        if data.language != "und" and primary(data.language) not in map(primary, languages):
            what = f"{name} has prompts in {' and '.join(languages)}, but none in {data.language} (data.language)"
            rank_zero_warn(f"{what}: set {name}.prompts and {name}.languages")
