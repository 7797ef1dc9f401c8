"""One path for all data: sources -> records -> tagged texts -> token sequences -> packed rows -> batches.

`inspect` follows the path up to the token sequences; training and validation follow it to its end, through the cache.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
import yaml
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from inscp.data.batching import grouped
from inscp.data.cache import CachedRows, DataReport, cached_rows, fingerprint, to_numpy
from inscp.data.fields import texts
from inscp.data.packing import PackReport, pack
from inscp.data.rows import PlacedRow
from inscp.data.sampling import EMPTY_ROW, MicroBatch
from inscp.data.sources import (
    OnBadRecord,
    ReadReport,
    Source,
    as_records,
    bad_record,
    file_names,
    read_records,
    renamed,
    require_records,
    source_fingerprint,
    weighted_rows,
)
from inscp.data.tagging import Tag, Tagger
from inscp.data.tokenization import tokenized
from inscp.data.workers import SequenceBatch, parallel_map
from inscp.errors import UserError
from inscp.records import IGNORED, PackedBatch, Record, TaggedText, TokenSequence

Sources = str | Source | list[str | Source]


def as_sources(given: Sources) -> list[Source]:
    """A list of sources, from any spelling of it.

    Raises:
        UserError: options of a source are invalid; the parser leaves such a source as text.
    """
    items = given if isinstance(given, list) else [given]
    if broken := next((item for item in items if isinstance(item, str) and item.startswith(("{", "["))), None):
        known = [field.name for field in fields(Source)]
        unknown = [(entry, name) for entry in _entries(broken) for name in entry if name not in known]
        what = f"{unknown[0][1]} is not an option of a source" if unknown else "an option of a source is invalid"
        where = str(unknown[0][0]) if unknown else broken
        raise UserError(where, what, f"Options are: {', '.join(known)}; text_unit is file, paragraph or line.")
    return [Source(item) if isinstance(item, str) else item for item in items]


def _entries(broken: str) -> list[dict[str, Any]]:
    """Options that could not be parsed as those of sources, if they are YAML."""
    try:
        given = yaml.safe_load(broken)
    except yaml.YAMLError:
        return []
    return [one for one in (given if isinstance(given, list) else [given]) if isinstance(one, dict)]


@dataclass
class Pipeline:
    """How text becomes rows.

    Args:
        sources: sources of the text.
        tokenizer: the model's.
        tagger: the training method.
        row_length: tokens per row.
        on_bad_record: stop at an invalid record, or skip and count it.
        document_length: maximum tokens of a text in the template; by default `row_length`.

    Attributes:
        reads: what was read: one report per source, filled while the sources are read.
    """

    sources: list[Source]
    tokenizer: PreTrainedTokenizerBase
    tagger: Tagger
    row_length: int
    on_bad_record: OnBadRecord = "error"
    document_length: int | None = None
    reads: list[ReadReport] = field(init=False)

    def __post_init__(self) -> None:
        self.reads = [ReadReport() for _ in self.sources]

    @cached_property
    def _tag(self) -> Tag:
        return self.tagger.bind(self.tokenizer)

    def _tagged(self, records: Iterable[Record], report: ReadReport) -> Iterator[TaggedText]:
        for record in records:
            try:
                documents = self._tag(record)
            except UserError as error:
                where = "" if error.where == record.source else f"{error.where}: "
                bad_record(record.source, where + error.what, self.on_bad_record, report, fix=error.fix)
            else:
                yield from documents

    def _tokenized(self, records: Iterable[Record], report: ReadReport) -> Iterator[tuple[TaggedText, TokenSequence]]:
        too_long = partial(bad_record, on_bad_record=self.on_bad_record, report=report)
        tagged = self._tagged(records, report)
        return tokenized(tagged, self.tokenizer, self.row_length, too_long, self.document_length)

    def documents(self) -> Iterator[tuple[TaggedText, TokenSequence]]:
        """Token sequences that fit into rows, source by source, each with the tagged text that it belongs to."""
        for source, report in zip(self.sources, self.reads, strict=True):
            yield from self._tokenized(read_records(source, self.on_bad_record, report), report)

    def sequences(self) -> Iterator[TokenSequence]:
        """The token sequences alone, made by one process per core."""
        for source, report in zip(self.sources, self.reads, strict=True):
            rows = grouped(weighted_rows(source), lambda placed: sum(map(len, texts(placed[1]))))
            for made, read in parallel_map(partial(self._made, source), rows):
                report.add(read)
                yield from made.sequences()
            require_records(source, report)

    def _made(self, source: Source, rows: list[PlacedRow]) -> tuple[SequenceBatch, ReadReport]:
        """The token sequences of some rows, and what was read and skipped; runs in a worker process."""
        report = ReadReport()
        records = as_records(rows, source, self.on_bad_record, report)
        return SequenceBatch.of([sequence for _, sequence in self._tokenized(records, report)]), report

    def fingerprint(self) -> str:
        """A digest of everything that determines the rows."""
        definition: dict[str, Any] = {"name": self.tokenizer.name_or_path}
        if self.tokenizer.is_fast:
            definition = json.loads(self.tokenizer.backend_tokenizer.to_str())
        return fingerprint(
            [(source_fingerprint(source), source.weight) for source in self.sources],
            definition | {"padding": None, "truncation": None},  # state of the tokenizer's last call
            self.tokenizer.chat_template,
            sorted((name, str(token)) for name, token in self.tokenizer.special_tokens_map.items()),
            self.tagger,
            self.row_length,
            self.document_length,
            self.on_bad_record,
        )

    def rows(self) -> CachedRows:
        """The packed rows, from the cache if they were made before."""
        report = PackReport(self.row_length)

        def finish(data_report: DataReport) -> None:
            if not data_report.rows:
                skipped = sum((read.skipped for read in self.reads), Counter[str]())
                [(why, count)] = skipped.most_common(1)
                first = next(read.examples[why] for read in self.reads if why in read.examples)
                what = f"no record is left ({count:,} are left out like this one: {why})"
                raise UserError(first, what, "Use a larger data.row_length, another tagger, or other data.")
            for place, (source, read) in enumerate(zip(self.sources, self.reads, strict=True)):
                numbers = {name: str(number) for number, name in enumerate(file_names(source))}
                examples = {why: renamed(position, numbers) for why, position in read.examples.items()}
                data_report.add(str(place), read.records, read.skipped, examples)

        cached = cached_rows(
            self.fingerprint(),
            make=lambda: (pack(self.sequences(), report), report),
            finish=finish,
            pad_id=self.tokenizer.pad_token_id or 0,
        )
        return replace(cached, report=self._named(cached.report))

    def _named(self, numbered: DataReport) -> DataReport:
        """A cached report with names instead of the numbers of sources and files: rows may have been cached from a copy
        of the data under other names."""
        licences = {_weighted_name(source): source.licence for source in self.sources if source.licence}
        report = replace(numbered, records={}, skipped={}, first_skipped={}, licences=licences)
        for source, (place, records) in zip(self.sources, numbered.records.items(), strict=True):
            names = {str(number): name for number, name in enumerate(file_names(source))}
            examples = numbered.first_skipped.get(place, {})
            first = {why: renamed(position, names) for why, position in examples.items()}
            report.add(_weighted_name(source), records, numbered.skipped.get(place, {}), first)
        return report


def _weighted_name(source: Source) -> str:
    """The name of a source with its weight, under which its records are counted."""
    return source.name if source.weight == 1 else f"{source.name} (weight {source.weight:g})"


class PackedRows(Dataset[PackedBatch]):
    """Packed rows as batches: `rows[micro_batch]` gives B rows at once.

    Args:
        cached: the rows.
        pad_id: the token id of an empty row.
        n_own: number of the run's own rows, which precede the replayed ones; by default all.
    """

    def __init__(self, cached: CachedRows, pad_id: int = 0, n_own: int | None = None) -> None:
        self._cached, self._pad_id = cached, pad_id
        self._n_own = len(cached.n_tokens) if n_own is None else n_own

    def __getitem__(self, micro: MicroBatch) -> PackedBatch:
        length = self._cached.report.row_length
        input_ids = torch.full((len(micro.rows), length), self._pad_id, dtype=torch.long)
        targets = torch.full((len(micro.rows), length), IGNORED, dtype=torch.long)
        position_ids = torch.arange(length).repeat(len(micro.rows), 1)
        documents: list[int] = []
        replayed = [row for row in micro.rows if row >= self._n_own]
        own = [row for row in micro.rows if row < self._n_own]
        for place, row in enumerate(own + replayed):
            if row == EMPTY_ROW:
                documents.append(length)
                continue
            table = self._cached.table
            columns = {name: to_numpy(table.column(name)[row].values) for name in table.column_names}
            input_ids[place] = torch.tensor(columns["input_ids"])
            targets[place] = torch.tensor(columns["targets"])
            lengths = columns["lengths"]
            starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
            position_ids[place] -= torch.from_numpy(starts)
            documents += lengths.tolist()
        counts = micro.step_targets, micro.step_tokens
        n_replayed = len(replayed), int((targets[len(own) :] != IGNORED).sum())
        return PackedBatch(input_ids, targets, position_ids, tuple(documents), *counts, *n_replayed)
