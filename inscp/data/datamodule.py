"""The Lightning data module: training rows in a resumable order, and named held-out sets."""

import math
from functools import cached_property
from itertools import chain
from typing import Any

import torch
from lightning import LightningDataModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from inscp.data.cache import CachedRows, DataReport
from inscp.data.mixture import Mixture, Replay, mixed
from inscp.data.pipeline import PackedRows, Pipeline, Sources, as_sources
from inscp.data.sampling import PackedRowSampler, RowOrder, Shuffled, Steps
from inscp.data.sources import OnBadRecord, Source, require_source
from inscp.data.special_tokens import used_control_tokens
from inscp.data.tagging import HELD_OUT, InsCPTagger, Tagger
from inscp.data.workers import ignore_signals
from inscp.errors import UserError, on_every_rank
from inscp.pretrained import embedding_rows, load_tokenizer, longest_input
from inscp.records import PackedBatch, require_language_tag


class InsCPDataModule(LightningDataModule):
    """Target-language text, tagged, packed and batched.

    Args:
        train: training sources: a path, a Hub id, or a list of them, each plain or with options. Not needed by commands
            that do not train.
        language: BCP 47 tag of the target language (`zh-TW`, `fi`), for names and reports.
        tagger: training method: InsCPTagger, PlainTagger or ConversationTagger.
        replay: text from other sources that is mixed in, to reduce forgetting.
        validation: held-out sets by name, each a source. Long texts are split at `row_length`, so perplexities are
            comparable only between runs with the same `row_length`; those of the task `Retention` are always
            comparable.
        validation_tagger: how held-out text is presented, the same for every arm so that losses are comparable; by
            default as the assistant's turn with the loss on the text, which is how the model will be used.
        row_length: tokens per packed row.
        document_length: maximum tokens per training document, template included (which may take at most half of them);
            by default `row_length`. A longer text is split at sentence boundaries into several documents, each tagged.
            Documents as long as an answer teach the model to end its answers. Conversations stay whole.
        batch_size: rows per micro-batch.
        token_budget: approximate number of training tokens (whole steps), replayed ones included; the data is repeated
            if it has fewer.
        epochs: passes over the training data (without replay), instead of a token budget; 1 if neither is given.
        on_bad_record: `error` stops at an invalid record, `skip` leaves it out and counts it.
        seed: random seed for the order of rows, dropout and the initialisation of adapters.
        num_workers: worker processes that load batches.
        force_resume: resume a checkpoint of other data on this data, at the same position of the row order.
        pretrained: model whose tokenizer is used (taken from `model`).
        max_steps: maximum optimizer steps, -1 for no limit (taken from the trainer).

    Attributes:
        validation_rows: the held-out sets by name (after `setup`).
    """

    def __init__(
        self,
        train: Sources | None = None,
        language: str = "und",
        tagger: Tagger = InsCPTagger(),  # noqa: B008  # frozen
        replay: Replay | None = None,
        validation: dict[str, str | Source] | None = None,
        validation_tagger: Tagger | None = None,
        row_length: int = 1024,
        document_length: int | None = None,
        batch_size: int = 1,
        token_budget: int | None = None,
        epochs: float | None = None,
        on_bad_record: OnBadRecord = "error",
        seed: int = 0,
        num_workers: int = 0,
        force_resume: bool = False,
        pretrained: str = "",
        max_steps: int = -1,
    ) -> None:
        super().__init__()
        for name, value in {"row_length": row_length, "batch_size": batch_size, "epochs": epochs}.items():
            if value is not None and value <= 0:
                raise UserError(f"data.{name}", f"it must be positive, but is {value}", "Give a positive number.")
        require_language_tag("data.language", language)
        for name, value in {"seed": seed, "num_workers": num_workers}.items():
            if value < 0:
                raise UserError(f"data.{name}", f"it must not be negative, but is {value}", "Give 0 or more.")
        if document_length is not None and not 0 < document_length <= row_length:
            fix = f"Give 1 to {row_length} (data.row_length), or null for the whole row."
            raise UserError("data.document_length", f"{document_length} tokens do not fit into a row", fix)
        if token_budget is not None and token_budget <= 0:
            what = f"it must be positive, but is {token_budget}"
            raise UserError("data.token_budget", what, "Give a number of tokens, or null for all.")
        if token_budget is not None and epochs is not None:
            what = f"data.token_budget ({token_budget:,}) already sets the length of the run"
            raise UserError("data.epochs", what, "Set one of the two to null.")
        self._train = as_sources(train or [])
        self.language = language
        self.tagger = tagger
        self.replay = replay
        self.validation = {name: as_sources(source) for name, source in (validation or {}).items()}
        self.validation_tagger = validation_tagger or HELD_OUT
        self.row_length, self.batch_size, self.num_workers, self.seed = row_length, batch_size, num_workers, seed
        self.document_length = document_length
        self.token_budget, self.epochs, self.force_resume = token_budget, epochs or 1.0, force_resume
        self.on_bad_record = on_bad_record
        self.pretrained, self._max_steps = pretrained, max_steps
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._mixture: Mixture | None = None
        self.validation_rows: dict[str, CachedRows] = {}
        self._before = {"rows_before": 0, "steps_before": 0}

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer, loaded on first use."""
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self.pretrained)
        return self._tokenizer

    @cached_property
    def _longest(self) -> int:
        return longest_input(self.pretrained)

    @cached_property
    def _unembedded(self) -> list[str]:
        """Control tokens of training documents without an embedding row: added only to the tokenizer."""
        rows = embedding_rows(self.pretrained)
        return [name for name, index in used_control_tokens(self.tokenizer).items() if index >= rows]

    @property
    def train_sources(self) -> list[Source]:
        """Sources of the training data, without replay.

        Raises:
            UserError: there are none.
        """
        if not self._train:
            raise UserError("data.train", "there is no text to train on", "Name a file, a folder or a Hub id.")
        return self._train

    def require_sources(self) -> None:
        """Check that there are training sources and that all paths exist, before anything is read.

        Raises:
            UserError: there are none, or a path does not exist.
        """
        replayed = as_sources(self.replay.sources) if self.replay else []
        for source in (*self.train_sources, *replayed, *chain.from_iterable(self.validation.values())):
            require_source(source)

    def pipelines(self) -> list[Pipeline]:
        """The pipeline of the training data and, if there is replay, that of the replayed data."""
        streams = [(self.train_sources, self.tagger)]
        if self.replay is not None:
            streams.append((as_sources(self.replay.sources), self.replay.tagger or self.tagger))
        return [self.pipeline(*stream, self.document_length) for stream in streams]

    def pipeline(self, sources: list[Source], tagger: Tagger, document_length: int | None = None) -> Pipeline:
        """A pipeline with the settings of this section; held-out text is split only by `row_length`.

        Raises:
            UserError: rows exceed the model's context length, or a token has no embedding.
        """
        if self.row_length > self._longest:
            what = f"{self.row_length:,} tokens exceed the model's context length of {self._longest:,}"
            raise UserError("data.row_length", what, f"Give at most {self._longest}.")
        if self._unembedded:
            what = f"its tokenizer's {self._unembedded[0]} has no row in its embeddings"
            raise UserError(
                self.pretrained, what, "Resize the embeddings, or use the tokenizer that the model was trained with."
            )
        return Pipeline(sources, self.tokenizer, tagger, self.row_length, self.on_bad_record, document_length)

    @property
    def mixture(self) -> Mixture:
        """The rows of the run (after `setup`)."""
        assert self._mixture is not None
        return self._mixture

    @property
    def report(self) -> DataReport:
        """What became of the training sources, including replayed ones (after `setup`)."""
        return self.mixture.rows.report

    @property
    def validation_names(self) -> list[str]:
        """Names of the held-out sets, in the order of their data loaders."""
        return list(self.validation)

    @property
    def total_rows(self) -> int:
        """Rows of the run: the token budget (rounded up to rows) or `epochs` passes, limited by max_steps."""
        if self.token_budget is None:
            wanted = self.mixture.n_rows(math.ceil(self.mixture.n_own * self.epochs))
        else:
            wanted = math.ceil(self.token_budget / self.mixture.tokens_per_row)
        if self._max_steps >= 0 and self.trainer is not None:
            wanted = min(wanted, self.steps.rows_after(self._max_steps))
        return max(self._before["rows_before"], wanted)

    @property
    def total_tokens(self) -> int:
        """Estimated number of tokens in these rows."""
        return round(self.total_rows * self.mixture.tokens_per_row)

    @property
    def passes(self) -> float:
        """Number of passes over the training data, without replay."""
        return self.total_rows * (1 - self.mixture.share) / self.mixture.n_own

    @property
    def replayed_passes(self) -> float:
        """Number of passes over the replayed data; 0 without replay."""
        replayed = len(self.mixture.rows.n_tokens) - self.mixture.n_own
        return self.total_rows * self.mixture.share / replayed if replayed else 0.0

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.steps.count(self.total_rows)

    def span(self, step: int) -> tuple[float, float]:
        """Fractions of the run that are done before and after optimizer step `step` (from 0)."""
        return self.steps.rows_after(step) / self.total_rows, self.steps.rows_after(step + 1) / self.total_rows

    @property
    def steps(self) -> Steps:
        """How the rows of the run are divided into optimizer steps."""
        assert self.trainer is not None
        return Steps(self.batch_size, self.trainer.accumulate_grad_batches, self.ranks[0], **self._before)

    @property
    def ranks(self) -> tuple[int, int]:
        """Number of ranks that see different rows, and the index of this one among them."""
        assert self.trainer is not None
        shares = self.trainer.distributed_sampler_kwargs or {"num_replicas": 1, "rank": 0}
        return shares["num_replicas"], shares["rank"]

    @property
    def _fits(self) -> bool:
        return self.trainer is None or self.trainer.state.fn == TrainerFn.FITTING

    def prepare_data(self) -> None:
        """Fill the cache, in one process per node."""
        self.setup("fit" if self._fits else "validate")

    def setup(self, stage: str | None = None) -> None:
        """Open the packed rows."""
        if stage in ("fit", None) and self._mixture is None:
            own, *replayed = (pipeline.rows() for pipeline in self.pipelines())
            self._mixture = (
                mixed(own, replayed[0], self.replay.share) if self.replay else Mixture(own, len(own.n_tokens))
            )
        for name, sources in self.validation.items():
            if name not in self.validation_rows:
                self.validation_rows[name] = self.pipeline(sources, self.validation_tagger).rows()

    def train_dataloader(self) -> DataLoader[PackedBatch]:
        """Micro-batches of this rank, from the first unseen row on."""
        rows, order = self.mixture.rows, self.mixture.order(self.seed)
        return self._loader(rows, order, self.total_rows, self.steps, self.mixture.n_own)

    def val_dataloader(self) -> list[DataLoader[PackedBatch]]:
        """One loader per held-out set."""
        steps = Steps(self.batch_size, ranks=self.ranks[0])
        return [
            self._loader(rows, Shuffled(len(rows.n_targets), seed=None), len(rows.n_targets), steps)
            for rows in self.validation_rows.values()
        ]

    test_dataloader = val_dataloader

    def _loader(
        self, rows: CachedRows, order: RowOrder, total_rows: int, steps: Steps, n_own: int | None = None
    ) -> DataLoader[PackedBatch]:
        sampler = PackedRowSampler(rows.n_targets, rows.n_tokens, order, total_rows, steps, self.ranks[1])
        dataset = PackedRows(rows, self.tokenizer.pad_token_id or 0, n_own)
        pinned = torch.cuda.is_available()
        return DataLoader(dataset, batch_size=None, sampler=sampler, num_workers=self.num_workers, pin_memory=pinned,
                          worker_init_fn=ignore_signals)  # fmt: skip

    @property
    def _identity(self) -> dict[str, Any]:
        """What must be the same for a run to be resumed."""
        return {"fingerprint": self.report.fingerprint, "seed": self.seed}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to continue at the next unseen row, on any number of ranks."""
        assert self.trainer is not None
        step = self.trainer.global_step
        # The last step is padded with empty rows, which must not count as seen if a larger budget resumes from it.
        return self._identity | {"step": step, "rows_seen": min(self.steps.rows_after(step), self.total_rows)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue after the rows that were seen.

        Raises:
            UserError: the checkpoint was trained on other data or in another order, and `force_resume` is not set.
        """
        if not self._fits:
            return
        for key, now in self._identity.items():
            if state_dict[key] != now and not self.force_resume:
                what = f"the checkpoint was trained with data {key} {state_dict[key]}, but this configuration has {now}"
                same = "the same data, tokenizer, tagger, seed and program"
                fix = f"Resume with {same}, or force it: --data.force_resume true."
                raise on_every_rank(UserError("--ckpt_path", what, fix))
        self._before = {"rows_before": state_dict["rows_seen"], "steps_before": state_dict["step"]}


def data_of(trainer: Trainer) -> InsCPDataModule:
    """The data module of a trainer."""
    data: InsCPDataModule = trainer.datamodule  # type: ignore[attr-defined]
    return data
