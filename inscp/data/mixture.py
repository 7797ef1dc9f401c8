"""What the rows of a run are made of: its own data and, if configured, replayed text.

Replay (rehearsal) mixes in text of a kind that the model knows already, such as English conversations, so that it is
not forgotten; Ibrahim et al. 2024 (arXiv 2403.08763) show this for continual pre-training.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from inscp.data.cache import CachedRows, DataReport, fingerprint
from inscp.data.pipeline import Sources
from inscp.data.sampling import Interleaved, RowOrder, Shuffled
from inscp.data.tagging import Tagger
from inscp.errors import UserError


@dataclass(frozen=True)
class Replay:
    """Text from other sources that is mixed into the training data, to reduce forgetting.

    Args:
        sources: sources of the text, as in `data.train`; English conversations, say.
        share: fraction of the training rows, in (0, 1).
        tagger: how the text is presented: ConversationTagger keeps the prompts and answers of conversations. By default
            the same as for the training data.
    """

    sources: Sources
    share: float
    tagger: Tagger | None = None

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise UserError("data.replay.share", f"{self.share} is not between 0 and 1", "Give 0.1, say.")


@dataclass(frozen=True)
class Mixture:
    """The rows of a run.

    Attributes:
        rows: the run's own rows, followed by the replayed ones.
        n_own: number of its own rows.
        share: fraction of the run's rows that are replayed.
    """

    rows: CachedRows
    n_own: int
    share: float = 0.0

    def order(self, seed: int) -> RowOrder:
        """The endless stream of rows."""
        own = Shuffled(self.n_own, seed)
        if not self.share:
            return own
        replayed = Shuffled(len(self.rows.n_tokens) - self.n_own, seed, part=1)
        return Interleaved(own, replayed, self.share, offset=self.n_own)

    @cached_property
    def tokens_per_row(self) -> float:
        """The mean over the stream, without padding."""
        own, replayed = np.split(self.rows.n_tokens, [self.n_own])
        return float(own.mean() * (1 - self.share) + (replayed.mean() * self.share if self.share else 0))

    def n_rows(self, n_own: int) -> int:
        """Number of rows of the stream that contain `n_own` of the run's own rows."""
        return n_own + int(n_own * self.share / (1 - self.share))


def mixed(own: CachedRows, replayed: CachedRows, share: float) -> Mixture:
    """The run's own rows and the replayed ones, combined."""
    rows = CachedRows(
        pa.concat_tables([own.table, replayed.table]),
        np.concatenate([own.n_targets, replayed.n_targets]),
        np.concatenate([own.n_tokens, replayed.n_tokens]),
        _report(own.report, replayed.report, share),
    )
    return Mixture(rows, len(own.n_tokens), share)


def _report(own: DataReport, replayed: DataReport, share: float) -> DataReport:
    counts = ("rows", "tokens", "targets", "sequences", "split_documents")
    report = DataReport(
        fingerprint(own.fingerprint, replayed.fingerprint, share),
        own.row_length,
        **{name: getattr(own, name) + getattr(replayed, name) for name in counts},
    )
    report.padding = 1 - report.tokens / (report.rows * report.row_length)
    for name in ("records", "skipped", "first_skipped", "licences"):
        of_replay = {f"{source} (replay)": found for source, found in getattr(replayed, name).items()}
        setattr(report, name, getattr(own, name) | of_replay)
    return report
