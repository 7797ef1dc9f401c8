"""Candidates on disk, so that filters can read them repeatedly, and the format that `fit` reads."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from inscp.data.batching import batches
from inscp.records import Candidate, Record, Turn

_TURN = pa.struct([("role", pa.string()), ("content", pa.string())])
_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("text", pa.string()),
        ("messages", pa.list_(_TURN)),
        ("n_tokens", pa.int64()),
        ("perplexity", pa.float64()),
    ]
)


class Spool:
    """A Parquet file of candidates. A text without a speaker is in `text`, a conversation in `messages`.

    Args:
        path: of the file, which need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, candidates: Iterable[Candidate]) -> int:
        """Write these candidates to the file; returns their number."""
        written = 0
        with pq.ParquetWriter(self._path, _SCHEMA, compression="zstd") as writer:
            for batch in batches(candidates):
                rows = [_row(candidate) for candidate in batch]
                writer.write_table(pa.Table.from_pylist(rows, _SCHEMA))
                written += len(batch)
        return written

    def __iter__(self) -> Iterator[Candidate]:
        file = pq.ParquetFile(self._path)
        for group in range(file.num_row_groups):
            yield from map(_candidate, file.read_row_group(group).to_pylist())


def _row(candidate: Candidate) -> dict[str, object]:
    turns = candidate.record.turns
    is_document = len(turns) == 1 and turns[0].role == "document"
    return {
        "id": candidate.record.source,
        "source": candidate.source,
        "text": turns[0].text if is_document else None,
        "messages": None if is_document else [{"role": turn.role, "content": turn.text} for turn in turns],
        "n_tokens": candidate.n_tokens,
        "perplexity": candidate.perplexity,
    }


def _candidate(row: dict[str, object]) -> Candidate:
    said = row["messages"] or [{"role": "document", "content": row["text"]}]
    turns = tuple(Turn(turn["role"], turn["content"]) for turn in said)  # type: ignore[attr-defined]
    return Candidate(Record(row["id"], turns), row["source"], row["n_tokens"], row["perplexity"])  # type: ignore[arg-type]
