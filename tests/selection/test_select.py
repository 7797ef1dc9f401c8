"""The funnel gives every filter what the ones before it left, as often as it reads, and counts what each dropped."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from inscp.records import Candidate, Record, Turn
from inscp.selection import report
from inscp.selection.filters import Drop, Filter, Length, Perplexity, Selector, Verdict
from inscp.selection.select import Funnel, Histogram
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


def test_examples_are_drawn_evenly_from_all_that_came_by(tmp_path: Path) -> None:
    class Fourth(Filter):
        def judge(self, candidate: Candidate) -> Verdict:
            return Drop(f"{rest} left over") if (rest := candidate.n_tokens % 4) else candidate

    funnel = Funnel([Fourth()], n_examples=200, seed=0)
    funnel.run(candidates(4000), tmp_path / "out.parquet")
    for examples in (funnel.steps[0].examples, funnel.kept_examples):
        places = [int(example["id"].removeprefix("a:")) for example in examples]
        assert len(set(places)) == 200
        assert abs(fmean(places) - 2000) < 250  # three times the standard error


def test_every_value_falls_into_its_bin_and_what_is_beyond_into_the_last_or_the_first() -> None:
    histogram, edges = Histogram(), Histogram.edges()
    for value in (1.5, 20.0, 3e7):
        histogram.add(value)
        [place] = histogram.counts.nonzero()[0]
        assert edges[place] <= value < edges[place + 1]
        histogram.counts[place] = 0
    for value in (0.1, 1e99):
        histogram.add(value)
    assert (histogram.counts[0], histogram.counts[-1], histogram.counts.sum()) == (1, 1, 2)


def test_a_report_shows_both_ends_and_draws_each_filter_s_bounds_over_what_it_judges(tmp_path: Path) -> None:
    funnel = Funnel([Length(2, 8), Perplexity(maximum=7.0)], 0, seed=0)
    funnel.run((replace(one, perplexity=float(one.n_tokens)) for one in candidates(10)), tmp_path / "out.parquet")
    told = report.as_dict(funnel, {})
    assert (told["before"]["records"], told["after"]["records"]) == ({"a": 10}, {"a": 6})
    bounds = [report._plot(told, *of).count("#c0392b") for of in (("length", "Length"), ("perplexity", "Perplexity"))]
    assert bounds == [2, 1]


def test_a_file_of_candidates_gives_them_back(tmp_path: Path) -> None:
    said = [(Turn("document", "a"),), (Turn("user", "a"),), (Turn("user", "a"), Turn("assistant", "b"))]
    given = [Candidate(Record(f"s:{n}", turns), "s", n, 1.5 if n else None) for n, turns in enumerate(said)]
    assert Spool(tmp_path / "spool").write(given) == 3
    assert list(Spool(tmp_path / "spool")) == given


def test_an_example_is_the_record_as_it_came_with_why_it_went(tmp_path: Path) -> None:
    [step] = run([Even()], tmp_path, n_examples=9)[0].steps
    assert [(example["id"], example["why"]) for example in step.examples] == [
        (f"a:{i}", f"odd {i} tokens") for i in range(1, 11, 2)
    ]
