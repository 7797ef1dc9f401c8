"""Records and their scores, side by side."""

from collections.abc import Iterable, Iterator

from transformers import PreTrainedTokenizerBase

from inscp.data.batching import batches
from inscp.data.sources import OnBadRecord, ReadReport, Source, bad_record, read_records
from inscp.errors import UserError
from inscp.paths import local_path
from inscp.records import Candidate, Record
from inscp.selection.scores import ScoreFolder


def bounded(
    records: Iterable[Record], max_characters: int, on_bad_record: OnBadRecord, report: ReadReport
) -> Iterator[Record]:
    """The records that are not too long to be held in memory as tokens; the others are bad ones."""
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
        UserError: the scores are of other data, or (with `error`) a record has none.
    """
    number = scores.index(source.name, fingerprint)
    stream, scored_as = scores.read(number), scores.sources[number]["path"]
    score = next(stream, None)
    for record in read_records(source, on_bad_record, report):
        if score is None or _inside(score.id, scored_as) != _inside(record.source, source.path):
            detail = f"{scores.folder} skipped it, or is not complete"
            bad_record(record.source, "it has no score", on_bad_record, report, detail)
            continue
        yield Candidate(record, source.name, score.n_tokens, score.nll)
        score = next(stream, None)
    if score is not None:
        raise UserError(str(scores.folder), f"{score.id} was scored and is not in {source.path}", "Score it again.")


def _inside(position: str, path: str) -> str:
    """The position without the source's own path: a file may be named from another folder than when it was scored."""
    return position.removeprefix(str(local_path(path))).removeprefix(path)


def counted(source: Source, tokenizer: PreTrainedTokenizerBase, records: Iterable[Record]) -> Iterator[Candidate]:
    """Records with their number of tokens, and no score."""
    for batch in batches(records):
        texts = [turn.text for record in batch for turn in record.turns]
        encoding = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        lengths = iter(map(len, encoding["input_ids"]))
        for record in batch:
            yield Candidate(record, source.name, sum(next(lengths) for _ in record.turns))
