"""The order of rows is the same however a step is divided, goes on exactly after a stop, and takes every row once."""

from itertools import zip_longest

import numpy as np
import pytest

from inscp.data.sampling import EMPTY_ROW, Interleaved, MicroBatch, PackedRowSampler, RowOrder, Shuffled, Steps

N_ROWS = 37
N_TARGETS = np.random.default_rng(1).integers(1, 100, N_ROWS)
N_TOKENS = N_TARGETS + 3
DIVISIONS = [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 1, 8), (4, 1, 2)]


ORDER = Shuffled(N_ROWS, seed=0)


def steps(division: tuple[int, int, int], total: int = N_ROWS, order: RowOrder = ORDER, rows_before: int = 0):
    """The micro-batches of every optimizer step, over all ranks."""
    _, accumulate, ranks = division
    samplers = [
        PackedRowSampler(N_TARGETS, N_TOKENS, order, total, Steps(*division, rows_before), rank)
        for rank in range(ranks)
    ]
    micros = list(zip(*samplers, strict=True))
    return [
        [micro for moment in micros[at : at + accumulate] for micro in moment]
        for at in range(0, len(micros), accumulate)
    ]


def rows_of(step: list[MicroBatch]) -> list[int]:
    return [row for micro in step for row in micro.rows]


def stream(taken: list[list[MicroBatch]]) -> list[int]:
    """All rows in order; empty ones stand only at the very end."""
    rows = [row for step in taken for row in rows_of(step)]
    full = [row for row in rows if row != EMPTY_ROW]
    assert rows[: len(full)] == full
    return full


@pytest.mark.parametrize("division", [*DIVISIONS, (3, 2, 1), (5, 1, 3)])
def test_one_pass_takes_every_row_exactly_once(division):
    assert sorted(stream(steps(division))) == list(range(N_ROWS))


@pytest.mark.parametrize("division", DIVISIONS[1:])
def test_a_step_is_the_same_however_it_is_divided(division):
    for one, other in zip_longest(steps(DIVISIONS[0], 100), steps(division, 100)):
        assert rows_of(other) == rows_of(one)
        assert {micro.step_targets for micro in other} == {one[0].step_targets}


@pytest.mark.parametrize("division", [*DIVISIONS, (3, 1, 5), (1, 1, 1)])
@pytest.mark.parametrize("start", [8, 16, 40, 96])
def test_a_resumed_stream_resumes_at_the_first_unseen_row(division, start):
    whole = stream(steps(DIVISIONS[0], 100))
    assert stream(steps(division, 100, rows_before=start)) == whole[start:]


def test_a_finished_stream_gives_nothing_more():
    assert steps((2, 2, 2), rows_before=N_ROWS) == steps((2, 2, 2), rows_before=40) == []


def test_targets_and_tokens_of_a_step_are_summed_over_the_whole_of_it():
    for step in steps((2, 2, 2), 100):
        rows = [row for row in rows_of(step) if row != EMPTY_ROW]
        expected = int(N_TARGETS[rows].sum())
        assert {(micro.step_targets, micro.step_tokens) for micro in step} == {(expected, expected + 3 * len(rows))}
        assert expected > 0


def test_the_last_step_is_filled_with_empty_rows():
    last = rows_of(steps((2, 2, 2))[-1])
    assert last[5:] == [EMPTY_ROW] * 3
    assert EMPTY_ROW not in last[:5]
    assert all(EMPTY_ROW not in rows_of(step) for step in steps((2, 2, 2))[:-1])


def test_every_pass_is_another_order_of_every_row():
    rows = stream(steps((2, 2, 2), 3 * N_ROWS))
    passes = [rows[at : at + N_ROWS] for at in range(0, 3 * N_ROWS, N_ROWS)]
    assert all(sorted(one) == list(range(N_ROWS)) for one in passes)
    assert len({tuple(one) for one in passes}) == 3


def test_a_step_may_be_longer_than_the_data():
    rows = stream(steps((50, 2, 1), 200))
    assert rows == stream(steps((8, 1, 1), 200))
    assert sorted(rows[: 5 * N_ROWS]) == sorted(list(range(N_ROWS)) * 5)


@pytest.mark.parametrize("division", DIVISIONS)
@pytest.mark.parametrize("total", [1, 8, 37, 100])
def test_len_counts_the_micro_batches_of_one_rank(division, total):
    sampler = PackedRowSampler(N_TARGETS, N_TOKENS, ORDER, total, Steps(*division))
    assert len(sampler) == len(list(sampler))
    before = {"rows_before": 8, "steps_before": 1}
    resumed = PackedRowSampler(N_TARGETS, N_TOKENS, ORDER, total, Steps(*division, **before))
    assert len(resumed) == len(sampler)  # those that were taken before are counted


def test_len_after_steps_of_another_size_counts_those_steps_and_what_is_left():
    steps = Steps(4, 2, 2, rows_before=8, steps_before=4)
    sampler = PackedRowSampler(N_TARGETS, N_TOKENS, ORDER, 40, steps)
    assert len(sampler) == (4 + 2) * 2
    assert len(list(sampler)) == 2 * 2
    assert [steps.rows_after(n) for n in (4, 6)] == [8, 40]
    assert Steps(1, rows_before=8, steps_before=4).count(3) == 4, "what is asked for was taken before"


def test_the_seed_decides_the_order():
    zero, again, one, plain = (stream(steps((8, 1, 1), order=Shuffled(N_ROWS, seed))) for seed in (0, 0, 1, None))
    assert zero == again
    assert zero != one
    assert plain == list(range(N_ROWS)) not in (zero, one)


def test_a_pass_is_shuffled_once_and_not_at_every_step(monkeypatch):
    shuffles = []
    make = np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda seed: shuffles.append(seed) or make(seed))
    assert len(list(PackedRowSampler(N_TARGETS, N_TOKENS, Shuffled(N_ROWS, 0), 3 * N_ROWS, Steps(1)))) == 3 * N_ROWS
    assert shuffles == [(0, 0, 0), (0, 1, 0), (0, 2, 0)]


N_OWN, N_OTHER = 25, N_ROWS - 25


def interleaved(share: float) -> Interleaved:
    return Interleaved(Shuffled(N_OWN, 0), Shuffled(N_OTHER, 0, part=1), share, offset=N_OWN)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.75])
def test_a_stream_that_is_mixed_in_has_its_share_at_every_length(share):
    is_other = np.cumsum(interleaved(share).rows(0, 500) >= N_OWN)
    assert all(count == int(length * share) for length, count in enumerate(is_other, 1))


def test_both_streams_go_through_all_their_rows_in_orders_of_their_own():
    rows = interleaved(0.3).rows(0, 200)
    own, other = rows[rows < N_OWN], rows[rows >= N_OWN]
    assert [sorted(one) for one in (own[:N_OWN], other[:N_OTHER])] == [[*range(N_OWN)], [*range(N_OWN, N_ROWS)]]
    assert own[:N_OWN].tolist() == Shuffled(N_OWN, 0).rows(0, N_OWN).tolist()  # as if nothing were mixed in
    assert other[:N_OTHER].tolist() != other[N_OTHER : 2 * N_OTHER].tolist()


@pytest.mark.parametrize("begin", [0, 1, 7, 33, 120])
def test_each_position_of_a_mixture_knows_its_row(begin):
    whole = interleaved(0.3).rows(0, 200)
    assert interleaved(0.3).rows(begin, begin + 1).tolist() == whole[[begin]].tolist()
    assert interleaved(0.3).rows(begin, 200).tolist() == whole[begin:].tolist()


@pytest.mark.parametrize("division", [*DIVISIONS, (3, 1, 5)])
def test_a_mixture_is_divided_and_resumed_as_any_stream(division):
    whole = interleaved(0.3).rows(0, 100).tolist()
    assert stream(steps(division, 100, order=interleaved(0.3))) == whole
    assert stream(steps(division, 100, order=interleaved(0.3), rows_before=40)) == whole[40:]
