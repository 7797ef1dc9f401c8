"""Records with their scores."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from inscp.data.batching import batches
from inscp.data.sources import OnBadRecord, ReadReport, Source, bad_record, read_records, source_fingerprint
from inscp.data.special_tokens import encode_plain_batch
from inscp.errors import UserError
from inscp.paths import local_path
from inscp.records import Candidate, Record
from inscp.selection.scores import ScoreFolder


@dataclass
class Candidates:
    """The candidates of several sources in turn, with their scores or their token counts.

    Args:
        sources: sources of the records.
        scores: their scores; None if tokens are counted.
        tokenizer: counts tokens; needed without scores, or if scores count only the tokens of answers.
        max_characters: without scores, a longer record is a bad record.
        on_bad_record: stop, or skip and count.

    Attributes:
        fingerprints: digests of the sources' contents.
        reads: name of a source -> what has been read of it so far.

    Raises:
        UserError: two sources have the same name, by which filters and reports distinguish them.
    """

    sources: list[Source]
    scores: ScoreFolder | None
    tokenizer: PreTrainedTokenizerBase | None
    max_characters: int
    on_bad_record: OnBadRecord

    def __post_init__(self) -> None:
        require_names(self.sources)
        self.fingerprints = [source_fingerprint(source) for source in self.sources]
        self.reads = {source.name: ReadReport() for source in self.sources}

    def __iter__(self) -> Iterator[Candidate]:
        for source, digest, report in zip(self.sources, self.fingerprints, self.reads.values(), strict=True):
            if self.scores:
                found = scored(source, digest, self.scores, self.on_bad_record, report)
            else:
                records = read_records(source, self.on_bad_record, report)
                records = bounded(records, self.max_characters, self.on_bad_record, report)
                found = (Candidate(record, source.name, 0) for record in records)
            if self.scores and self.scores.counts_whole_records:
                yield from found
            else:
                assert self.tokenizer is not None
                yield from counted(found, self.tokenizer)


def require_names(sources: Sequence[Source]) -> None:
    """
    Raises:
        UserError: two sources have the same name, by which filters and reports distinguish them.
    """
    if len({source.name for source in sources}) < len(sources):
        raise UserError("data", "one source is given twice", "Give each once.")


def bounded(
    records: Iterable[Record], max_characters: int, on_bad_record: OnBadRecord, report: ReadReport
) -> Iterator[Record]:
    """The records short enough to be held in memory as tokens; longer ones are bad records."""
    for record in records:
        if record.n_characters <= max_characters:
            yield record
        else:
            why, detail = f"a record of more than {max_characters:,} characters", f"it has {record.n_characters:,}"
            bad_record(record.source, why, on_bad_record, report, f"{detail}; see max_characters")


def scored(
    source: Source, fingerprint: str, scores: ScoreFolder, on_bad_record: OnBadRecord, report: ReadReport
) -> Iterator[Candidate]:
    """The records of a source with their scores, in order.

    Raises:
        UserError: the scores belong to other data, or (with `error`) a record has none.
    """
    number = scores.index(source.name, fingerprint)
    stream, scored_as = scores.read(number), scores.sources[number]["path"]
    score = next(stream, None)
    for record in read_records(source, on_bad_record, report):
        if score is None or _inside(score.id, scored_as) != _inside(record.source, source.path):
            detail = f"{scores.folder} skipped it, or is not complete"
            bad_record(record.source, "it has no score", on_bad_record, report, detail)
            continue
        yield Candidate(record, source.name, score.n_tokens, score.perplexity)
        score = next(stream, None)
    if score is not None:
        raise UserError(str(scores.folder), f"{score.id} was scored, but is not in {source.path}", "Score it again.")


def _inside(position: str, path: str) -> str:
    """The position relative to the source's folder, or with the name of its file: the source may have been named
    differently, or from another folder, when it was scored."""
    rest = position.removeprefix(str(local_path(path))).removeprefix(path)
    return Path(path).name + rest if rest.startswith((":", "#")) else rest.removeprefix("/")


def counted(candidates: Iterable[Candidate], tokenizer: PreTrainedTokenizerBase) -> Iterator[Candidate]:
    """The candidates with the number of tokens of all their texts, as in training."""
    for batch in batches(candidates):
        texts = [turn.text for candidate in batch for turn in candidate.record.turns]
        lengths = iter(map(len, encode_plain_batch(tokenizer, texts)))
        for candidate in batch:
            yield replace(candidate, n_tokens=sum(next(lengths) for _ in candidate.record.turns))
