"""Groups of records are bounded by characters, so that memory does not grow with the length of documents."""

from inscp.data.batching import batches
from inscp.records import Record, Turn


def test_groups_hold_at_most_a_thousand_records_or_half_a_million_characters() -> None:
    lengths = [1] * 2000 + [200_000] * 5 + [900_000] + [1] * 3
    records = [Record(str(i), (Turn("document", "x" * n),)) for i, n in enumerate(lengths)]
    groups = list(batches(records))
    assert [record for group in groups for record in group] == records
    assert [len(group) for group in groups[:2]] == [1024, 979]
    assert max(sum(record.n_characters for record in group[:-1]) for group in groups) < 1 << 19
