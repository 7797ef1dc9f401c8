"""`fit`, `validate`, `test`: LightningCLI over InsCPModule and InsCPDataModule, tracked by MLflow."""

import os
import re
import sys
from functools import cached_property
from pathlib import Path
from shlex import quote
from typing import Any, Self

import torch.distributed as dist
import yaml
from jsonargparse import Namespace
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from inscp.callbacks.before_after import BeforeAfter
from inscp.callbacks.checkpoints import Checkpoints
from inscp.callbacks.cost import TrainingCost, training_cost
from inscp.callbacks.export import ExportAtEnd
from inscp.callbacks.interruption import Interruption, how_to_go_on
from inscp.callbacks.last_validation import LastValidation
from inscp.callbacks.progress import progress
from inscp.callbacks.provenance import Provenance, run_name
from inscp.callbacks.stop_when_aligned import StopWhenAligned
from inscp.callbacks.throughput import Throughput
from inscp.commands.checks import (
    require_promptable,
    require_supported,
    require_texts,
    require_trainer,
    warn_of_languages,
    warn_of_precision,
)
from inscp.commands.help import HelpInOrder, TrainingHelp
from inscp.commands.parser import NoSubConfigs, OneLineErrors, require_known_variables
from inscp.commands.quiet import quiet
from inscp.commands.resume import (
    CHECKPOINTS,
    CONFIG,
    ENDED,
    continued_run,
    last_checkpoint,
    new_folder,
    require_no_others,
)
from inscp.cost.ledger import Ledger
from inscp.data.datamodule import InsCPDataModule
from inscp.errors import RunError, Stopped, UserError, first_line
from inscp.model.checkpoint import TRACKING_KEY, read_metadata
from inscp.model.module import InsCPModule
from inscp.model.precision import best_precision
from inscp.model.strategies import strategy_for
from inscp.paths import OUTPUTS, write_atomically
from inscp.pretrained import with_its_code
from inscp.tracking.environment import provenance_tags
from inscp.tracking.tracked_run import Tracking
from inscp.tracking.tracker import MLflowTracker, tracker_of

_LOST = re.compile(r"connection closed|connection reset|gloo|nccl|socket|timed? ?out", re.IGNORECASE)
"""In messages of torch when a process no longer responds to another."""

TRAINER_DEFAULTS = {
    "inference_mode": False,  # validation comes first, and FSDP2 keeps the buffers of its first forward pass
    "max_epochs": 1,  # the data determines the length: token_budget or epochs
    "use_distributed_sampler": False,  # the data module distributes the rows
    "num_sanity_val_steps": -1,  # the original model's held-out losses, before the first step
    "gradient_clip_val": 1.0,
    "log_every_n_steps": 1,
    "enable_model_summary": False,
    "default_root_dir": OUTPUTS,
}


def run(command: str, arguments: list[str]) -> None:
    """`python -m inscp fit|validate|test …`"""
    quiet()
    # The rank of a node until Lightning starts its processes: one store and one run folder serve all nodes.
    own = getattr(rank_zero_only, "rank", None)
    rank_zero_only.rank = own or int(os.environ.get("NODE_RANK", 0))  # type: ignore[attr-defined]
    try:
        InsCPCLI(command)
    except Stopped:
        _leave_together()
        raise
    except (RunError, UserError) as error:
        if error.is_on_every_rank:
            _leave_together()
            if int(os.environ.get("LOCAL_RANK", 0)):  # launchers kill the other ranks when one fails first
                raise Stopped("", 0) from error
        raise
    except MisconfigurationException as error:
        raise UserError("trainer", first_line(error), "See python -m inscp fit --help.") from error
    except ValueError as error:
        if "`val_check_interval`" not in str(error):
            raise
        fix = "Give a number of micro-batches within the run, or a fraction of the run (0.25)."
        raise UserError("trainer.val_check_interval", "it is longer than the training run", fix) from error
    except SystemExit as error:  # how Lightning handles Ctrl-C outside the training loop
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        raise
    except RuntimeError as error:
        if not (dist.is_initialized() and _LOST.search(str(error))):
            raise
        what = f"another process of this run has ended or cannot be reached ({first_line(error)[:200]})"
        raise RunError(f"{what}; {how_to_go_on()}") from error
    _leave_together()


def _leave_together() -> None:
    """Close the process group once every rank is done with it; ranks that leave early would break the others."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def _listed(given: Any) -> list[Any]:
    """A list of one value, several or none, as Lightning accepts them."""
    return list(given) if isinstance(given, list | tuple) else [given] if given else []


class TrainingParser(HelpInOrder, NoSubConfigs, OneLineErrors, LightningArgumentParser):
    """Parser of the commands that take a training configuration."""


class LogConfig(SaveConfigCallback):
    """Saves the whole configuration in the run's folder, in every checkpoint, and as an MLflow artifact."""

    def __init__(self, *args: Any, folder: Path, **kwargs: Any) -> None:
        super().__init__(*args, save_to_log_dir=False, **kwargs)
        self._folder = folder

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        write_atomically(self._folder / CONFIG, self._text)
        if tracker := tracker_of(trainer):
            tracker.log_text(self._text, CONFIG)
            tracker.note_run(self._folder)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[CONFIG] = self._text

    @cached_property
    def _text(self) -> str:
        # Without the arguments of this one call, so that every command accepts the file.
        config = {key: value for key, value in self.config.items() if key not in ("ckpt_path", "weights_only")}
        return f"# Paths are relative to {Path.cwd()}\n{self.parser.dump(Namespace(config), skip_unset=False)}"


class InsCPCLI(LightningCLI):
    """The training commands. Every section of a configuration file is one class.

    `model` InsCPModule, `data` InsCPDataModule, `trainer` lightning.Trainer, `checkpoint` Checkpoints,
    `before_after` BeforeAfter, `stop_when_aligned` StopWhenAligned, `mlflow` Tracking, `cost` Ledger.
    """

    command_name = ""
    """Name of the command in messages, if it is not one of Lightning's."""

    def __init__(self, command: str = "fit", run: bool = True, **kwargs: Any) -> None:
        self._command = command
        # If nothing is run there is no subcommand, and the prefix must contain its name for `fit`'s variables to count.
        prefix = "INSCP" if run else "INSCP_FIT_"
        super().__init__(
            InsCPModule,
            InsCPDataModule,
            parser_class=TrainingParser,
            trainer_defaults=TRAINER_DEFAULTS,
            save_config_callback=LogConfig,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,  # it dumps the configuration twice, for unused hyperparameters
            seed_everything_default=0,
            parser_kwargs={
                "prog": "python -m inscp",
                "default_env": True,
                "env_prefix": prefix,
                "formatter_class": TrainingHelp,
            },
            run=run,
            **kwargs,
        )

    @classmethod
    def unrun(cls, arguments: list[str]) -> Self:
        """The configuration of a command that is not one of Lightning's, from the whole command line."""
        sys.argv = [sys.argv[0], *arguments]
        return cls(run=False)

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        parser = super().init_parser(**kwargs)
        assert isinstance(parser, TrainingParser)
        parser.command_name = f"python -m inscp {self.command_name or self._command}"
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        own = getattr(self, "_subcommand_parsers", {}).get(self._command, parser)
        require_known_variables(f"INSCP_{self._command.upper()}__", own)
        super().parse_arguments(parser, args)

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Only the one that is run: creating a parser takes a fifth of a second."""
        return {self._command: LightningCLI.subcommands()[self._command]}

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        parser.set_defaults(weights_only=True)  # a checkpoint is data: loading one never runs code
        if subcommand != "fit":
            parser.set_defaults(verbose=False)  # Lightning's table repeats every set under every data loader
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_class_arguments(Tracking, "mlflow")
        parser.add_class_arguments(Ledger, "cost")
        parser.add_lightning_class_args(BeforeAfter, "before_after")
        parser.add_lightning_class_args(StopWhenAligned, "stop_when_aligned")
        parser.add_lightning_class_args(Checkpoints, "checkpoint")
        parser.link_arguments("model.pretrained", "data.pretrained", apply_on="instantiate")
        parser.link_arguments("trainer.max_steps", "data.max_steps")
        parser.set_defaults(
            {"data.tagger": {"class_path": "inscp.data.tagging.InsCPTagger"}}
        )  # so that its keys can be set

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer with this run's name, folder, tracking and callbacks."""
        name = run_name(self.model, self.datamodule)
        given = self._made("trainer")
        checkpoints: Checkpoints = self._made("checkpoint")
        if self.subcommand == "fit":
            require_supported(given, self.model, self.datamodule, checkpoints)
            require_texts(self.model, self.datamodule)
            prompted = {name: list(self._made(name).questions) for name in ("before_after", "stop_when_aligned")}
            require_promptable(self.datamodule, prompted)
            warn_of_precision(given["precision"])
            if not getattr(rank_zero_only, "rank", 0):
                warn_of_languages(self.datamodule)
        else:
            require_trainer(given)
            if not self.datamodule.validation:
                raise UserError("data.validation", "there is no held-out set", 'Name one: {"fi": "heldout.jsonl"}.')
        self._find_folder(Path(given["default_root_dir"]) / re.sub(r"[^a-z0-9.]+", "-", name.lower()))
        self.tracker = self._open_tracker(name) if given["logger"] is None else None
        if given["logger"] is None:
            kwargs["logger"] = self.tracker or False
        given["callbacks"] = [*_listed(given["callbacks"]), *self._callbacks()]
        given["enable_progress_bar"] = sys.stderr.isatty()
        # The rows end there: if as many steps are done, Lightning would not enter its loop, and export nothing.
        given["max_steps"] = -1
        if SLURMEnvironment.detect():  # we handle the signal; the recipe requeues the job
            given["plugins"] = [*_listed(given["plugins"]), SLURMEnvironment(auto_requeue=False)]
        self.save_config_kwargs = {"folder": self.folder}
        strategy = strategy_for(given["strategy"], given["accelerator"], given["devices"], given["num_nodes"])
        precision = given["precision"] or best_precision()
        trainer = super().instantiate_trainer(precision=precision, strategy=strategy, **kwargs)
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        callbacks.insert(callbacks.index(checkpoints), Interruption(checkpoints))
        return trainer

    def _made(self, key: str) -> Any:
        """The instantiated value of a configuration key: the object of a section, but the keys of the trainer."""
        return self._get(self.config_init, key)

    def _open_tracker(self, name: str) -> MLflowTracker | None:
        tracking: Tracking = self._made("mlflow")
        earlier = read_metadata(self._resumed)[TRACKING_KEY] if self._resumed and self._is_continued else None
        starts_run = self.subcommand == "fit" or tracking.run_id is not None
        if not (tracking.enabled and starts_run):
            return None
        tracker = MLflowTracker(tracking, name, provenance_tags(), earlier)
        tracker.unsent_folder = self.folder
        return tracker

    def _callbacks(self) -> list[Callback]:
        """The callbacks of every run; BeforeAfter, StopWhenAligned, Interruption and, last, Checkpoints follow them."""
        checkpoints: Checkpoints = self._made("checkpoint")
        before_after: BeforeAfter = self._made("before_after")
        before_after.folder, before_after.has_earlier_answers = self.model_folder, self._resumed is not None
        self._made("stop_when_aligned").folder = self.folder
        provenance, throughput = Provenance(self.folder), Throughput()
        # The order matters. Throughput and TrainingCost count a step before StopWhenAligned reads `tokens_seen` and
        # before Interruption and Checkpoints save the counts; Interruption also saves what StopWhenAligned measures
        # after a step. At the end, LastValidation runs before TrainingCost counts it and ExportAtEnd reports it, and
        # Interruption handles signals until the export and the table are done, which a signal would abort.
        return [
            provenance,
            throughput,
            LastValidation(),
            TrainingCost(self._made("cost"), throughput),
            ExportAtEnd(self.model_folder, provenance, checkpoints),
            progress(),
        ]

    def _find_folder(self, runs: Path) -> None:
        """Decide what the run resumes from and where its files are.

        Args:
            runs: the folder of all runs of this name.
        """
        checkpoints: Checkpoints = self._made("checkpoint")
        given, is_fit = self._made("ckpt_path"), self.subcommand == "fit"
        folder = checkpoints.folder if checkpoints.is_given_folder else None
        found = Path(given) if given else None
        if is_last := given == "last":
            found = last_checkpoint(runs, folder, self._plain_config(), is_fit)
            self.config_init[self.subcommand]["ckpt_path"] = found and str(found)
        before = continued_run(found, is_last) if found and is_fit else None
        if folder and is_fit:
            require_no_others(folder, found if before else None)
        self._resumed = found
        is_made_here = is_fit and not getattr(rank_zero_only, "rank", 0)  # other ranks write nothing
        self._is_continued = before is not None
        self.folder = before or (new_folder(runs) if is_made_here else runs)
        if is_made_here:
            (self.folder / ENDED).unlink(missing_ok=True)
        self.model_folder = self.folder / "model"
        if not folder:
            checkpoints.folder = self.folder / CHECKPOINTS

    def _plain_config(self) -> dict[str, Any]:
        """The configuration as plain values, as in its file."""
        text = self._parser(self.subcommand).dump(self.config[self.subcommand], skip_unset=False)
        plain: dict[str, Any] = yaml.safe_load(text)
        return plain

    def after_validate(self) -> None:
        """Print loss (nats per token) and perplexity of each held-out set."""
        if self.trainer.is_global_zero:
            for name, value in sorted(self.trainer.callback_metrics.items()):
                print(f"{name:<40} {float(value):10.4f}")

    after_test = after_validate

    def after_fit(self) -> None:
        """Print where everything is and what to do next."""
        if not self.trainer.is_global_zero:
            return
        (self.folder / ENDED).touch()
        model, tracker = self.model_folder, self.tracker if self.tracker and self.tracker.is_sent else None
        print(f"\nmodel      {model}")
        if tracker:
            print(f"MLflow run {tracker.address}")
        if cost := training_cost(self.trainer):
            print(f"cost       {cost}")
        print(f"\nnext:\n  python -m inscp chat --model {quote(with_its_code(self.model.pretrained, str(model)))}")
        print(f"  python -m inscp inspect --config {quote(str(self.folder / CONFIG))}")
        if tracker:
            print(f"  {tracker.viewing}")
