"""The funnel gives every filter what the ones before it left, as often as it reads, and counts what each dropped."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from inscp.records import Candidate, Record, Turn
from inscp.selection.filters import Drop, Filter, Selector, Verdict
from inscp.selection.select import Funnel
from inscp.selection.spool import Spool


def candidates(n: int) -> Iterator[Candidate]:
    """Readable once, as a source is."""
    return (Candidate(Record(f"a:{i}", (Turn("document", f"text {i}"),)), "a", i) for i in range(1, n + 1))


@dataclass
class Even(Filter):
    """What a user writes: no more than a judge."""

    def judge(self, candidate: Candidate) -> Verdict:
        return candidate if candidate.n_tokens % 2 == 0 else Drop("odd", f"{candidate.n_tokens} tokens")


@dataclass
class AboveTheMean(Selector):
    """What compares candidates."""

    reads_twice = True

    def verdicts(self, candidates: Iterable[Candidate]) -> Iterator[tuple[Candidate, Verdict]]:
        sizes = [candidate.n_tokens for candidate in candidates]
        mean = sum(sizes) / len(sizes)
        for candidate in candidates:
            yield candidate, candidate if candidate.n_tokens > mean else Drop("small")


def run(filters: list[Selector], folder: Path, n_examples: int = 2) -> tuple[Funnel, list[int]]:
    funnel = Funnel(filters, n_examples, seed=0)
    written = funnel.run(candidates(10), folder / "out.parquet")
    left = [candidate.n_tokens for candidate in Spool(folder / "out.parquet")]
    assert written == len(left)
    assert [path.name for path in folder.iterdir()] == ["out.parquet"]  # what was kept for a second reading is gone
    return funnel, left


def test_each_filter_sees_what_the_ones_before_it_left(tmp_path: Path) -> None:
    funnel, left = run([Even(), AboveTheMean(), AboveTheMean()], tmp_path)
    assert left == [10]  # of 2 4 6 8 10 the mean is 6, of 8 10 it is 9
    assert [step.dropped for step in funnel.steps] == [{"odd": 5}, {"small": 3}, {"small": 1}]
    assert [(step.records, step.tokens) for step in funnel.steps] == [(5, 30), (2, 18), (1, 10)]
    assert (funnel.before.tokens, funnel.after.tokens) == ({"a": 55}, {"a": 10})


def test_the_order_of_the_filters_is_that_in_which_they_are_applied(tmp_path: Path) -> None:
    assert run([AboveTheMean(), Even()], tmp_path)[1] == [6, 8, 10]


def test_an_example_is_the_record_as_it_came_with_why_it_went(tmp_path: Path) -> None:
    [step] = run([Even()], tmp_path, n_examples=9)[0].steps
    assert [(example["id"], example["why"]) for example in step.examples] == [
        (f"a:{i}", f"odd {i} tokens") for i in range(1, 11, 2)
    ]
