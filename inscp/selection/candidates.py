"""Records and their scores, side by side."""

from collections.abc import Iterable, Iterator
from itertools import islice

from transformers import PreTrainedTokenizerBase

from inscp.data.sources import OnBadRecord, ReadReport, Source, bad_record, read_records, source_fingerprint
from inscp.errors import UserError
from inscp.records import Candidate, Record
from inscp.selection.scores import ScoreFolder

_AT_ONCE = 1024


def bounded(
    records: Iterable[Record], max_characters: int, on_bad_record: OnBadRecord, report: ReadReport
) -> Iterator[Record]:
    """The records that are not too long to be held in memory as tokens; the others are bad ones."""
    for record in records:
        length = sum(len(turn.text) for turn in record.turns)
        if length <= max_characters:
            yield record
        else:
            why = f"a record of more than {max_characters:,} characters"
            bad_record(record.source, why, on_bad_record, report, f"it has {length:,}; see max_characters")


def scored(source: Source, scores: ScoreFolder, on_bad_record: OnBadRecord, report: ReadReport) -> Iterator[Candidate]:
    """The records of a source with their scores, in order.

    Raises:
        UserError: the scores are of other data, or (with `error`) a record has none.
    """
    number = scores.index(source.path, source_fingerprint(source))
    stream = scores.read(number)
    score = next(stream, None)
    for record in read_records(source, on_bad_record, report):
        # Files may be named from another folder than when they were scored; what they hold is the same.
        if score is None or score.id.rpartition("/")[2] != record.source.rpartition("/")[2]:
            detail = f"{scores.folder} skipped it, or is not complete"
            bad_record(record.source, "it has no score", on_bad_record, report, detail)
            continue
        yield Candidate(record, source.path, score.n_tokens, score.nll)
        score = next(stream, None)
    if score is not None:
        raise UserError(str(scores.folder), f"{score.id} was scored and is not in {source.path}", "Score it again.")


def counted(source: Source, tokenizer: PreTrainedTokenizerBase, records: Iterable[Record]) -> Iterator[Candidate]:
    """Records with their number of tokens, and no score."""
    stream = iter(records)
    while batch := list(islice(stream, _AT_ONCE)):
        texts = [turn.text for record in batch for turn in record.turns]
        encoding = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        lengths = iter(map(len, encoding["input_ids"]))
        for record in batch:
            yield Candidate(record, source.path, sum(next(lengths) for _ in record.turns))
