"""Where a run comes from: parameters, versions, data and one tagged example, in MLflow and in every checkpoint."""

import json
import math
import sys
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from inscp.callbacks.cost import training_cost
from inscp.cost.ledger import Cost
from inscp.data.datamodule import InsCPDataModule, data_of
from inscp.data.pipeline import Pipeline
from inscp.errors import UserError, on_every_rank
from inscp.model.checkpoint import FOLDER_KEY, ORIGIN_KEY, TRACKING_KEY
from inscp.model.module import InsCPModule
from inscp.model.origin import Origin, read_origin, title, warn_of_other_weights
from inscp.paths import local_path
from inscp.pretrained import weights_fingerprint
from inscp.selection import report as selection
from inscp.tracking.environment import hardware, versions
from inscp.tracking.tracker import tracker_of


def run_name(module: InsCPModule, data: InsCPDataModule) -> str:
    """The name of the run shown to users: method, additions to it, model and language."""
    additions = {
        "replay": data.replay and not module.distillation,
        "distilled": module.distillation,
        "by probability": module.token_weights,
        "LoRA": module.adapter,
        "shielded": module.shield,
        "new tokens alone": module.new_tokens_only,
        "EMA": module.ema_decay is not None,
    }
    arm = ", ".join([data.tagger.arm, *(name for name, is_so in additions.items() if is_so)])
    return Origin(module.pretrained, arm, data.language, before=read_origin(module.pretrained)).name


def tagged_example(pipeline: Pipeline) -> str:
    """The first document as the model sees it, decoded from its ids."""
    sequence = next(islice(pipeline.sequences(), 1), None)
    return str(pipeline.tokenizer.decode(sequence.input_ids)) if sequence else ""


class Provenance(Callback):
    """Logs what made the run, and keeps it in checkpoints for `export` and its model card.

    Args:
        folder: folder of the run, in which a resumed run continues.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._before: Origin | None = None
        self._weights = ""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data, tracker = data_of(trainer), tracker_of(trainer)
        assert isinstance(pl_module, InsCPModule)
        self._before = read_origin(pl_module.pretrained)
        depends = trainer.is_global_zero and (pl_module.adapter or pl_module.distillation)
        self._weights = weights_fingerprint(pl_module.pretrained) if depends else ""
        if trainer.is_global_zero:
            print(f"data: {data.report}", file=sys.stderr, flush=True)
            print(f"training on about {data.total_tokens:,} tokens: {_passes(data)}", file=sys.stderr, flush=True)
        if pl_module.adapter and self._before and self._before.has_untrained_tokens:
            what = "has new tokens that are still untrained, and adapters do not train embeddings"
            rank_zero_warn(f"{pl_module.pretrained} {what}: train all weights first (without model.adapter)")
        if tracker is None:
            return
        origin = self.origin(trainer)
        report = asdict(data.report)
        names = {"arm": origin.arms, "model": origin.base_model, "language": origin.language, "hardware": hardware()}
        measures = ("fingerprint", "tokens", "sequences", "split_documents", "padding")
        data_params = {f"data_{measure}": report[measure] for measure in measures}
        tracker.log_hyperparams(names | data_params | dict(origin.training) | {"steps": data.total_steps})
        sources = ", ".join(data.report.records)
        tracker.log_dataset(f"{data.language} ({len(data.report.records)} sources)", data.report.fingerprint[:16],
                            sources, json.dumps({k: report[k] for k in ("rows", "tokens", "sequences")}))  # fmt: skip
        tracker.log_text(json.dumps(report, indent=1, ensure_ascii=False), "data_report.json")
        if trainer.is_global_zero:
            pipelines = data.pipelines()
            tracker.log_text("\n\n".join(map(tagged_example, pipelines)), "tagged_example.txt")
            paths = [source.path for pipeline in pipelines for source in pipeline.sources]
            for number, folder in enumerate(map(local_path, paths), 1):
                for name in (selection.JSON, selection.HTML):  # if `select` wrote the source
                    if (folder / name).is_file():
                        tracker.log_text((folder / name).read_text("utf-8"), f"selection/{number}{name}")
                if scoring := _scoring_cost(folder):
                    tracker.log_at(scoring.metrics("scoring"), step=0)
                    tracker.log_hyperparams(scoring.params("scoring"))

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the held-out losses of the original model as the first point of the curves."""
        assert isinstance(pl_module, InsCPModule)
        tracker = tracker_of(trainer)
        if tracker is not None:
            for name, loss in pl_module.held_out_before.items():
                tracker.log_at({f"val/{name}/loss": loss, f"val/{name}/perplexity": math.exp(loss)}, step=0)

    def origin(self, trainer: Trainer) -> Origin:
        """Everything about the run as plain values."""
        module, data = trainer.lightning_module, data_of(trainer)
        assert isinstance(module, InsCPModule)
        training = {
            "learning_rate": module.optimizer.learning_rate,
            "schedule": module.optimizer.schedule,
            "weight_decay": module.optimizer.weight_decay,
            "row_length": data.row_length,
            "rows_per_step": data.steps.rows_per_step,
            "steps": trainer.global_step,
            "token_budget": data.token_budget or data.total_tokens,
            "precision": str(trainer.precision),
            "made_with": ", ".join(f"{name} {of}" for name, of in versions().items() if name != "mlflow"),
            "world_size": trainer.world_size,
            "seed": data.seed,
            "tagger": repr(data.tagger),
            "passes": _passes(data),
        }
        if data.document_length:
            training["document_length"] = data.document_length
        if frozen := _frozen(module):
            training["shield"] = frozen
        if module.new_tokens_only:
            training["trained"] = "the new tokens alone"
        pipelines = data.pipelines()
        if weighted := {s.path: s.weight for one in pipelines for s in one.sources if s.weight != 1}:
            training["source_weights"] = ", ".join(f"{path} {weight:g}" for path, weight in weighted.items())
        if module.token_weights:
            training["token_weights"] = module.token_weights
        if module.distillation:
            teacher = title(module.distillation.teacher_of(module.pretrained))
            training["distillation"] = f"replayed rows, by {teacher}, weight {module.distillation.weight:g}"
        if data.replay:
            training["replay"] = f"{data.replay.share:.0%} of the rows, {data.replay.tagger or data.tagger!r}"
        if module.adapter:
            training["adapter"] = repr(module.adapter)
        if module.ema_decay is not None:
            training["ema_decay"] = module.ema_decay
        is_measured = module.held_out_step == trainer.global_step  # and not after an earlier step
        held_out = {
            name: {"before": loss} | ({"after": module.held_out[name]} if is_measured else {})
            for name, loss in module.held_out_before.items()
        }
        adapter = asdict(module.adapter) if module.adapter else None
        report, arm, cost = asdict(data.report), data.tagger.arm, training_cost(trainer)
        return Origin(
            module.pretrained, arm, data.language, training, report, held_out, adapter, before=self._before,
            cost=cost.plain() if cost else {}, weights=self._weights,
        )  # fmt: skip

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        assert isinstance(pl_module, InsCPModule)
        found = Origin(**checkpoint[ORIGIN_KEY])
        _require_same(found, pl_module, trainer.state.fn == TrainerFn.FITTING)
        warn_of_other_weights(found, pl_module.pretrained)
        before, now = found.training["precision"], str(trainer.precision)
        if trainer.state.fn == TrainerFn.FITTING and before != now:  # the default depends on the machine
            rank_zero_warn(f"training began in {before} and resumes in {now}; set trainer.precision to keep {before}")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        tracker = tracker_of(trainer)
        checkpoint[ORIGIN_KEY] = asdict(self.origin(trainer))
        checkpoint[FOLDER_KEY] = str(self._folder)
        measured = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("train/")}
        checkpoint[TRACKING_KEY] = tracker.state(measured, trainer.global_step) if tracker is not None else []


def _passes(data: InsCPDataModule) -> str:
    """The number of passes over the data, in words."""
    replayed = f", {data.replayed_passes:.3g} over the replayed rows" if data.replay else ""
    return f"{data.passes:.3g} passes over the training rows{replayed}"


def _frozen(module: InsCPModule) -> str | None:
    """What a shield freezes, in words."""
    if module.shield is None or module.frozen is None:
        return None
    return f"{module.shield.share:.0%} of the columns of {len(module.frozen.weights)} matrices frozen"


def _require_same(found: Origin, module: InsCPModule, trains: bool) -> None:
    """
    Args:
        found: origin of the checkpoint.
        module: the module that resumes from it.
        trains: whether the module is trained, not only evaluated.

    Raises:
        UserError: its adapter or shield differs from the checkpoint's.
    """
    adapter = asdict(module.adapter) if module.adapter else {}
    pairs: dict[str, list[Any]] = {"model.adapter": [{key: of[key] for key in of if key != "dropout"}
                                                     for of in (found.adapter or {}, adapter)]}  # fmt: skip
    if trains:
        pairs["model.shield"] = [found.training.get("shield"), _frozen(module)]
    for where, (then, now) in pairs.items():
        if then != now:
            what = f"the checkpoint was trained with {then or 'none'}, this configuration has {now or 'none'}"
            raise on_every_rank(UserError(where, what, "Resume with the settings that made it, or start a new run."))


def _scoring_cost(folder: Path) -> Cost | None:
    """The cost of the scores by which this folder's data was selected; None if unknown."""
    report = folder / selection.JSON
    found = json.loads(report.read_text("utf-8")).get("scoring_cost") if report.is_file() else None
    return Cost(**found) if found else None
