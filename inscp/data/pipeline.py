"""One path for data: sources -> records -> tagged texts -> token sequences -> packed rows -> batches.

`inspect` walks the same path up to the sequences; training and validation walk it to its end, through the cache.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from inscp.data.cache import CachedRows, DataReport, cached_rows, fingerprint
from inscp.data.packing import PackReport, pack
from inscp.data.sampling import EMPTY_ROW, MicroBatch
from inscp.data.sources import OnBadRecord, ReadReport, Source, bad_record, read_records, source_fingerprint
from inscp.data.tagging import Tagger
from inscp.data.tokenization import tokenize
from inscp.records import IGNORED, PackedBatch, TaggedText, TokenSequence

Sources = str | Source | list[str | Source]


def as_sources(given: Sources) -> list[Source]:
    """A list of sources from any spelling of them."""
    items = given if isinstance(given, list) else [given]
    return [Source(item) if isinstance(item, str) else item for item in items]


@dataclass
class Pipeline:
    """How text becomes rows.

    Args:
        sources: where the text comes from.
        tokenizer: the model's.
        tagger: the method.
        row_length: tokens a row.
        on_bad_record: stop at a record that does not fit, or skip and count it.
    """

    sources: list[Source]
    tokenizer: PreTrainedTokenizerBase
    tagger: Tagger
    row_length: int
    on_bad_record: OnBadRecord = "error"
    reads: dict[str, ReadReport] = field(default_factory=dict)

    def tagged(self) -> Iterator[TaggedText]:
        """Every tagged text of every source, in order."""
        tag = self.tagger.bind(self.tokenizer)
        for source in self.sources:
            report = self.reads.setdefault(source.path, ReadReport())
            for record in read_records(source, self.on_bad_record, report):
                yield from tag(record)

    def sequences(self, documents: Iterator[TaggedText] | None = None) -> Iterator[TokenSequence]:
        """Token sequences that fit into rows, of `documents` or of all."""

        def too_long(position: str, why: str) -> None:
            report = self.reads.setdefault(position.rsplit(":", 1)[0], ReadReport())
            bad_record(position, why, self.on_bad_record, report)

        yield from tokenize(documents or self.tagged(), self.tokenizer, self.row_length, too_long)

    def fingerprint(self) -> str:
        """A digest of everything that decides what the rows hold."""
        backend = self.tokenizer.backend_tokenizer.to_str() if self.tokenizer.is_fast else self.tokenizer.name_or_path
        return fingerprint(
            [source_fingerprint(source) for source in self.sources],
            backend,
            self.tokenizer.chat_template,
            sorted((name, str(token)) for name, token in self.tokenizer.special_tokens_map.items()),
            self.tagger,
            self.row_length,
            self.on_bad_record,
        )

    def rows(self) -> CachedRows:
        """The packed rows, from the cache where they were made before."""
        report = PackReport(self.row_length)

        def finish(data_report: DataReport) -> None:
            data_report.records = {name: read.records for name, read in self.reads.items()}
            data_report.skipped = {name: dict(read.skipped) for name, read in self.reads.items() if read.skipped}

        pad_id = self.tokenizer.pad_token_id
        return cached_rows(
            self.fingerprint(),
            make=lambda: (pack(self.sequences(), report), report),
            finish=finish,
            pad_id=pad_id if pad_id is not None else 0,
        )


class PackedRows(Dataset[PackedBatch]):
    """Packed rows as batches: `rows[micro_batch]` gives B rows at once.

    Args:
        cached: the rows.
        pad_id: the token id of an empty row.
    """

    def __init__(self, cached: CachedRows, pad_id: int = 0) -> None:
        self._cached, self._pad_id = cached, pad_id

    def __getitem__(self, micro: MicroBatch) -> PackedBatch:
        length = self._cached.report.row_length
        input_ids = torch.full((len(micro.rows), length), self._pad_id, dtype=torch.long)
        targets = torch.full((len(micro.rows), length), IGNORED, dtype=torch.long)
        position_ids = torch.arange(length).repeat(len(micro.rows), 1)
        for place, row in enumerate(micro.rows):
            if row == EMPTY_ROW:
                continue
            columns = {
                name: self._cached.table.column(name)[row].values for name in ("input_ids", "targets", "lengths")
            }
            input_ids[place] = torch.tensor(columns["input_ids"].to_numpy())
            targets[place] = torch.tensor(columns["targets"].to_numpy())
            lengths = columns["lengths"].to_numpy()
            starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
            position_ids[place] -= torch.from_numpy(starts)
        n_tokens = sum(int(self._cached.n_tokens[row]) for row in micro.rows if row != EMPTY_ROW)
        return PackedBatch(input_ids, targets, position_ids, micro.step_targets, n_tokens)
