"""Packing loses, repeats and divides nothing, fills rows well, and asks no document to predict the next."""

from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np
import pytest

from inscp.data.packing import PackReport, collate, pack
from inscp.records import IGNORED, TokenSequence

ROW_LENGTH = 256
PAD = 9_999


def sequence(number: int, length: int, part: int = 1, parts: int = 1) -> TokenSequence:
    """Token t of sequence n is 300 n + t and so tells where it belongs; every third, never the first, is no target."""
    ids = np.arange(length, dtype=np.int32) + 300 * number
    return TokenSequence(f"s:{number}", ids, np.where(ids % 3 == 2, IGNORED, ids), part, parts)


def seeded(n: int, seed: int = 0, longest: int = ROW_LENGTH) -> list[TokenSequence]:
    lengths = np.random.default_rng(seed).lognormal(4, 0.8, n).astype(int).clip(2, longest)
    return [sequence(number, int(length)) for number, length in enumerate(lengths)]


def first_come(sequences: Iterable[TokenSequence]) -> float:
    """The share of padding where each sequence goes into the newest row, or opens another."""
    rows = [0]
    for item in sequences:
        if rows[-1] + len(item.input_ids) > ROW_LENGTH:
            rows.append(0)
        rows[-1] += len(item.input_ids)
    return 1 - sum(rows) / (len(rows) * ROW_LENGTH)


@pytest.mark.parametrize("n", [1, 700, 9000])
def test_no_sequence_is_lost_repeated_or_divided(n):
    sequences = seeded(n)
    rows = list(pack(sequences, PackReport(ROW_LENGTH)))
    assert Counter(id(item) for row in rows for item in row) == Counter(map(id, sequences))
    assert all(sum(len(item.input_ids) for item in row) <= ROW_LENGTH for row in rows)
    assert all(rows)


def test_a_sequence_as_long_as_the_row_fits():
    report = PackReport(ROW_LENGTH)
    rows = list(pack([sequence(0, ROW_LENGTH), sequence(1, ROW_LENGTH)], report))
    assert len(rows) == 2
    assert report.padding == 0


@pytest.mark.parametrize("seed", range(3))
def test_best_fit_fills_rows_better_than_first_come(seed):
    report = PackReport(ROW_LENGTH)
    sequences = seeded(5000, seed)
    list(pack(sequences, report))
    assert report.padding < 0.01 < 0.1 < first_come(sequences)


def test_each_goes_where_it_leaves_the_least_room():
    report = PackReport(ROW_LENGTH)
    list(pack([sequence(0, length) for length in (26, 100, 106, 130, 150)], report))
    assert report.rows == 2
    assert report.padding == 0


def test_no_cross_document_targets():
    interior_doc_starts = 0
    rows = list(pack(seeded(500), PackReport(ROW_LENGTH)))
    for row, input_ids, targets, lengths in zip(rows, *collate(rows, ROW_LENGTH, PAD), strict=True):
        assert sum(lengths) == len(input_ids) == len(targets) == ROW_LENGTH
        ends = np.cumsum(lengths)
        interior_doc_starts += len(row) - 1
        assert (targets[ends - 1] == IGNORED).all()
        for item, end, length in zip(row, ends, lengths, strict=False):
            assert (input_ids[end - length : end] == item.input_ids).all()
            assert (targets[end - length : end - 1] == item.labels[1:]).all()
        has_target = targets != IGNORED
        assert (targets[has_target] == input_ids[has_target] + 1).all()  # the next token of the same document
        assert (targets[has_target] % 3 != 2).all()  # only where the label is one
    assert interior_doc_starts > 200


def test_padding_has_no_target_and_is_a_document_of_its_own():
    input_ids, targets, lengths = collate([[sequence(1, 5), sequence(2, 4)], [sequence(1, 12)]], 12, PAD)
    assert lengths == [[5, 4, 3], [12]]
    assert (input_ids[0, 9:] == PAD).all()
    assert (targets[0, 8:] == IGNORED).all()


def test_a_sequence_without_a_token_takes_no_place():
    input_ids, targets, lengths = collate([[sequence(3, 0), sequence(1, 5)], []], 6, PAD)
    assert lengths == [[0, 5, 1], [6]]
    assert (targets[0, :4] == sequence(1, 5).labels[1:]).all()
    assert (input_ids[1] == PAD).all()


def test_the_report_adds_up():
    sequences = [*seeded(300), sequence(300, 200, 1, 2), sequence(301, 50, 2, 2)]
    report = PackReport(ROW_LENGTH)
    rows = list(pack(sequences, report))
    input_ids, targets, _ = collate(rows, ROW_LENGTH, PAD)
    assert report.rows == len(rows)
    assert report.sequences == len(sequences)
    assert report.split_documents == 1
    assert report.tokens == sum(len(item.input_ids) for item in sequences)
    assert report.targets == (targets != IGNORED).sum()
    assert report.padding == pytest.approx((input_ids == PAD).mean())


@pytest.mark.parametrize("length", [100, 200])
def test_rows_come_out_before_the_input_is_exhausted(length):
    taken = 0

    def long() -> Iterator[TokenSequence]:
        nonlocal taken
        while taken < 100_000:
            taken += 1
            yield sequence(0, length)

    rows = pack(long(), PackReport(ROW_LENGTH))
    given = sum(len(next(rows)) for _ in range(20_000))
    assert taken - given < 10_000


def test_the_same_input_gives_the_same_rows():
    one, two = ([[item.source for item in row] for row in pack(seeded(6000), PackReport(ROW_LENGTH))] for _ in "ab")
    assert one == two
