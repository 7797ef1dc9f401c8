"""Every metric has its place in a table, and a report holds what was measured and needs nothing else."""

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from inscp.errors import UserError
from inscp.evaluation.items import Item, items_folder, write_items
from inscp.evaluation.labels import label
from inscp.evaluation.results import Metric, Results, TaskResult
from inscp.evaluation.statistics import means
from inscp.evaluation.tasks.retention import Retention
from inscp.experiment.estimates import Difference
from inscp.experiment.page import grids
from inscp.experiment.plots import gained_and_kept
from inscp.experiment.report import comparison_page
from inscp.experiment.tables import Cell, Column, Comparison, Evaluated, Table
from inscp.model.origin import Origin


def evaluated(row: str, seed: int | None, ended: list[bool], losses: list[float]) -> Evaluated:
    answers = [Item(f"en: {n}", {"en/ended": one, "en/answered_in/en": True, "en/in_language_if_sound": one,
                                 "en/looped": not one}) for n, one in enumerate(ended)]  # fmt: skip
    texts = [Item(f"x: {n}", {"held_out/x/loss": loss}, {"held_out/x/loss": 1.0 + n}) for n, loss in enumerate(losses)]
    items: Mapping[str, list[Item]] = {"language": answers, "retention": texts}
    tasks = {
        "language": TaskResult("LanguageAlignment", means(answers), len(answers), 1, 0.0),
        "retention": TaskResult("Retention", Retention().metrics(texts), len(texts), 1, 0.0),
    }
    return Evaluated(row, seed, Results(row, tasks, {}), items)


@pytest.fixture
def comparison() -> Comparison:
    return Comparison(
        [
            evaluated("instruct", None, [False, False, True, False], [3.0, 4.0]),
            evaluated("InsCP | ours", 0, [True, True, True, False], [2.0, 3.0]),
            evaluated("InsCP | ours", 1, [True, False, True, True], [2.2, 3.2]),
        ],
        "instruct",
    )


def test_metrics_stand_in_the_papers_tables_and_none_is_lost(comparison: Comparison) -> None:
    tables = {table.title: [column.metric for column in table.columns] for table in comparison.tables()}
    assert tables["Language alignment (Table 1)"] == ["en/answered_in/en"]
    assert set(tables["What the answers are like"]) == {"en/ended", "en/in_language_if_sound", "en/looped"}
    assert set(tables["Retention"]) == {"held_out/x/perplexity", "held_out/x/loss"}


@pytest.mark.parametrize(
    ("kind", "metric", "called"),
    [
        ("LanguageAlignment", "en/answered_in/fi", "en prompt: fi"),
        ("LanguageAlignment", "en/ended", "en: end their turn"),
        ("MTBench", "score/turn_1", "score of the first turn"),
        ("MTBench", "score/writing", "score/writing"),
        ("Knowledge", "acc", "acc"),
        ("BOLD", "sd", "sentiment, sd"),
        ("Own", "length", "length"),
    ],
)
def test_under_its_tasks_name_a_metric_is_called_as_in_tables(kind: str, metric: str, called: str) -> None:
    assert label(kind, metric) == called


def test_a_row_of_several_seeds_is_their_mean_paired_with_the_reference(comparison: Comparison) -> None:
    column = Column("language", "en/ended", "")
    cell, change = comparison.cell("InsCP | ours", column), comparison.change("InsCP | ours", column)
    assert cell is not None
    assert change is not None
    assert (cell.metric.value, cell.seeds, cell.is_share) == (0.75, 2, True)
    assert (change.before, change.after, change.n) == (0.25, 0.75, 4)


def test_a_seed_in_which_no_answer_has_a_metric_leaves_it_to_the_others(comparison: Comparison) -> None:
    original, one, two = comparison.evaluated
    none = [replace(item, values={"en/ended": False}) for item in two.items["language"]]
    task = replace(two.results.tasks["language"], metrics=means(none))
    silent = replace(two, items={"language": none}, results=replace(two.results, tasks={"language": task}))
    found = Comparison([original, one, silent], "instruct")
    column = Column("language", "en/in_language_if_sound", "")
    cell, change = found.cell("InsCP | ours", column), found.change("InsCP | ours", column)
    assert cell is not None
    assert change is not None
    assert (cell.metric.value, cell.is_share, change.after) == (0.75, True, 0.75)
    assert cell.seeds == change.seeds == 1


def test_a_seed_in_which_one_of_two_rows_lacks_a_metric_does_not_count_in_their_difference(
    comparison: Comparison,
) -> None:
    def of(row: str, seed: int, sound: list[bool]) -> Evaluated:
        values = [{"ok": True} | ({"sound": sound[n]} if sound else {}) for n in range(10)]
        items = [Item(str(n), of_item) for n, of_item in enumerate(values)]
        task = TaskResult("LanguageAlignment", means(items), len(items), 1, 0.0)
        return Evaluated(row, seed, Results(row, {"language": task}, {}), {"language": items})

    poor, good = [True] + [False] * 9, [True] * 6 + [False] * 4
    rows = [of("a", 0, poor), of("a", 1, good), of("b", 0, []), of("b", 1, good)]
    change = Comparison(rows, "a").change("b", Column("language", "sound", ""))
    assert change is not None
    assert (change.before, change.after, change.p, change.seeds) == (0.6, 0.6, 1.0, 1)
    apart = Comparison([rows[0], rows[2], rows[3]], "a").change("b", Column("language", "sound", ""))
    assert apart is not None  # of no seed in common
    assert (apart.before, apart.after) == (0.1, 0.6)
    [table] = (of for of in Comparison(rows, "a").tables() if of.title == "By part")
    assert grids(table, "a")[1].rows == [["b", "0 (-31 to +31)", "0 (-31 to +31), 1 seed"], ["n", "10", "10"]]


def test_a_seed_that_only_one_of_two_rows_has_does_not_count_in_their_difference(comparison: Comparison) -> None:
    _, one, two = comparison.evaluated
    found = Comparison([replace(one, row="a"), replace(two, row="a"), replace(one, row="b")], "a")
    change = found.change("b", Column("language", "en/ended", ""))
    assert change is not None
    assert (change.before, change.after) == (0.75, 0.75)
    assert change.p == 1.0


def test_seeds_are_paired_by_their_numbers_in_whatever_order_they_come() -> None:
    """One seed is worse than the other in both rows, which says nothing of how the rows differ."""
    losses = {"a": ([2.0, 3.0] * 2, [4.0, 5.0] * 2), "b": ([2.1, 3.2] * 2, [4.1, 5.2] * 2)}
    before = [evaluated("a", seed, [True], of) for seed, of in enumerate(losses["a"])]
    after = [evaluated("b", seed, [True], of) for seed, of in enumerate(losses["b"])]
    change = Comparison([*before, *after[::-1]], "a").change("b", Column("retention", "held_out/x/loss", ""))
    assert change is not None
    assert change.change.value == pytest.approx((1 * 0.1 + 2 * 0.2 + 3 * 0.1 + 4 * 0.2) / 10)
    low, high = change.change.interval
    assert high - low < 1


def test_what_is_no_mean_over_items_has_the_mean_of_its_seeds_and_no_interval(comparison: Comparison) -> None:
    def with_sd(one: Evaluated, sd: float) -> Evaluated:
        task = one.results.tasks["language"]
        tasks = {"language": replace(task, metrics={"sd": Metric(sd, (0.0, 1.0), 4)})}
        return replace(one, results=replace(one.results, tasks=tasks))

    _, *seeds = comparison.evaluated
    found = Comparison([with_sd(one, sd) for one, sd in zip(seeds, (0.2, 0.4), strict=True)], "instruct")
    cell = found.cell("InsCP | ours", Column("language", "sd", ""))
    assert cell is not None
    assert (cell.metric.value, cell.seeds, cell.is_share) == (pytest.approx(0.3), 2, False)
    assert all(map(math.isnan, cell.metric.interval))


def test_an_item_is_in_one_half_and_the_halves_are_all(comparison: Comparison) -> None:
    whole = comparison.evaluated[0]
    halves = [whole.half(number) for number in (0, 1)]
    for task, result in whole.results.tasks.items():
        assert sorted(item.id for half in halves for item in half.items[task]) == [i.id for i in whole.items[task]]
        assert sum(half.results.tasks[task].n for half in halves) == result.n


def test_perplexity_over_seeds_is_that_of_the_mean_loss(comparison: Comparison) -> None:
    cell = comparison.cell("InsCP | ours", Column("retention", "held_out/x/perplexity", ""))
    assert cell is not None
    mean_loss = ((2.0 + 2 * 3.0) / 3 + (2.2 + 2 * 3.2) / 3) / 2
    assert cell.metric.value == pytest.approx(2.718281828**mean_loss, rel=1e-6)
    assert cell.metric.interval[0] < cell.metric.value < cell.metric.interval[1]


@pytest.mark.parametrize("name", ["lossless", "perplexity_band", "a/perplexity"])
def test_a_held_out_set_may_have_any_name(comparison: Comparison, name: str) -> None:
    def renamed(one: Evaluated) -> Evaluated:
        items = [replace(item, values={f"held_out/{name}/loss": item.values["held_out/x/loss"]})
                 for item in one.items["retention"]]  # fmt: skip
        task = replace(one.results.tasks["retention"], metrics=means(items))
        return replace(one, items={"retention": items}, results=replace(one.results, tasks={"retention": task}))

    column = Column("retention", f"held_out/{name}/perplexity", "")
    of_seeds = Comparison([renamed(one) for one in comparison.evaluated], "instruct").cell("InsCP | ours", column)
    assert of_seeds is not None
    assert of_seeds.metric.interval[0] < of_seeds.metric.value < of_seeds.metric.interval[1]


def test_the_page_needs_nothing_else_and_the_markdown_has_every_table(comparison: Comparison, tmp_path: Path) -> None:
    page = comparison_page(comparison, "A < B", "Which?", tmp_path)
    page.write(tmp_path)
    html = (tmp_path / "report.html").read_text("utf-8")
    assert "A &lt; B" in html
    assert all(source.startswith("data:") for source in re.findall(r'(?:src|href)="([^"]+)"', html))
    assert html.count('<div class="wide"><img ') == html.count("<img ") > 0, "a phone shows it large and scrolls"
    assert "http" not in re.sub(r'src="data:[^"]+"', "", html)
    markdown = (tmp_path / "report.md").read_text("utf-8")
    for table in comparison.tables():
        assert table.title in html
        assert f"### {table.title}\n" in markdown
    assert "InsCP \\| ours" in markdown
    assert (tmp_path / "en_perplexities.png").exists()
    for picture in re.findall(r"!\[.*?\]\((.+?)\)", markdown):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")


def test_tables_call_measures_as_people_do_and_say_of_how_many_items_they_are(comparison: Comparison) -> None:
    original, one, _ = comparison.evaluated
    more = evaluated("more", None, [True] * 6, [2.0, 3.0])
    tables = Comparison([original, one, more], "instruct").tables()
    table = next(of for of in tables if "answers are" in of.title)
    values, changes = grids(table, "instruct")
    assert values.head == ["", "en: end their turn", "en: in the language, of well-formed", "en: repeat themselves"]
    assert values.rows[-1] == ["n", "4–6", "4–6", "4–6"]
    assert changes.rows[-1] == ["n", "4", "4", "4"], "items that both were asked"
    rows = {row: [*cells] * 3 for row, cells in table.rows.items()}
    [turned] = grids(replace(table, columns=[*table.columns] * 3, rows=rows, changes={}), "instruct")
    assert turned.head == ["", "instruct", "InsCP | ours", "more", "n"]
    assert turned.rows[0][-1] == "4–6"


@pytest.mark.parametrize(("change", "interval", "shown"), [
    (0.004, (0.002, 0.006), "+0.4 (+0.2 to +0.6)*"),
    (-0.012, (-0.0236, -0.0004), "-1.20 (-2.36 to -0.04)*"),
    (0.3, (0.1, 0.5), "+30 (+10 to +50)*"),
    (0.3, (1e-9, 0.6), "+30.00 (0.00 to +60.00)*"),
    (-0.004, (-0.02, 0.012), "0 (-2 to +1)"),
    (0.0, (0.0, 0.0), "0 (0 to 0)"),
])  # fmt: skip
def test_what_has_a_star_is_not_shown_as_zero_and_zero_has_no_sign(
    change: float, interval: tuple[float, float], shown: str
) -> None:
    of_share = Cell(Metric(0.5, interval, 9), 1, is_share=True)
    table = Table("", [Column("t", "m", "m")], {"b": [of_share]}, {"b": [Difference(0.5, 0.5 + change,
                  Metric(change, interval, 9), 0.5)]})  # fmt: skip
    assert grids(table, "a")[1].rows[0] == ["b", shown]


def test_evaluations_of_two_versions_of_a_task_are_not_set_side_by_side(comparison: Comparison) -> None:
    old = comparison.evaluated[0]
    tasks = {name: replace(task, version=99) for name, task in old.results.tasks.items()}
    other = replace(old, results=replace(old.results, tasks=tasks))
    with pytest.raises(UserError, match="version 99"):
        Comparison([other, *comparison.evaluated[1:]], "instruct").tables()


def test_a_row_that_lacks_a_seed_says_so_and_has_no_star(comparison: Comparison) -> None:
    original, one, two = comparison.evaluated
    surer = evaluated("lost a seed", 1, [True] * 4, [2.0, 3.0])
    table = next(of for of in Comparison([original, one, two, surer], "instruct").tables() if "answers are" in of.title)
    values, changes = grids(table, "instruct")
    ended = [grid.head.index("en: end their turn") for grid in (values, changes)]
    rows = [{row[0]: row[at] for row in grid.rows} for grid, at in zip((values, changes), ended, strict=True)]
    assert list(rows[0]) == ["instruct", "InsCP | ours", "lost a seed, 1 seed", "n"], (
        "nothing is drawn for the original"
    )
    assert rows[1]["lost a seed, 1 seed"].startswith("+75 (")
    assert rows[1]["lost a seed, 1 seed"].endswith(")"), "an interval of one seed is narrower than one of two"
    assert "seed" not in "".join(map("".join, (*rows[0].values(), *rows[1].values())))
    for grid in (values, changes):
        assert "Two seeds show little of their variation: at worst the intervals cover the truth in 87 %" in grid.note
    assert "over seeds and items; with one seed over items only" in values.note
    alone = next(of for of in Comparison([original, one], "instruct").tables() if "answers are" in of.title)
    assert all("87" not in grid.note for grid in grids(alone, "instruct"))


def test_seeds_that_were_made_otherwise_are_reported_below_their_means(comparison: Comparison) -> None:
    def made(one: Evaluated, seed: int, **training: object) -> Evaluated:
        before = Origin("m", "orgCP", "fi", {"precision": "bf16-mixed", "seed": seed})
        training |= {"seed": seed, "steps": 50 + seed, "passes": f"{seed}", "models": f"m{seed}"}
        return replace(one, origin=Origin("m", "InsCP", "fi", training, before=before))

    def notes(*seeds: Evaluated) -> list[str]:
        tables = Comparison([comparison.evaluated[0], *seeds], "instruct").tables()
        return [grid.note for table in tables for grid in grids(table, "instruct")]

    _, one, two = comparison.evaluated
    asked = {"tagger": "InsCPTagger(user='x')", "precision": "bf16-mixed"}
    assert not any("differ in" in note for note in notes(made(one, 0, **asked), made(two, 1, **asked, added_later=1)))
    found = notes(made(one, 0, **asked), made(two, 1, **{**asked, "precision": "32-true"}))
    told = "InsCP | ours: seeds differ in precision (bf16-mixed, bf16-mixed then 32-true)."
    assert all(note.endswith(told) for note in found)


@pytest.mark.parametrize("tokens", [1.0, 0.5])
def test_losses_over_other_tokens_are_not_compared(comparison: Comparison, tokens: float) -> None:
    def measured(row: str, times: float) -> Evaluated:
        values = {"held_out/x/loss": 2.0 / times, "held_out/x/bits_per_byte": 1.0 / times}
        texts = [Item(str(n), values, {"held_out/x/loss": times * (1 + n), "held_out/x/bits_per_byte": 5.0 + n})
                 for n in range(4)]  # fmt: skip
        task = TaskResult("Retention", means(texts), len(texts), 1, 0.0)
        return Evaluated(row, None, Results(row, {"retention": task}, {}), {"retention": texts})

    [table] = Comparison([measured("instruct", 1.0), measured("more tokens", tokens)], "instruct").tables()
    changes = {
        column.metric: change for column, change in zip(table.columns, table.changes["more tokens"], strict=True)
    }
    assert (changes["held_out/x/loss"] is None) == (tokens != 1.0)
    assert changes["held_out/x/bits_per_byte"] is not None
    told = "x: loss and perplexity of more tokens are over other tokens than for instruct; compare bits per byte."
    assert [grid.note.endswith(told) for grid in grids(table, "instruct")] == [tokens != 1.0] * 2


def test_intervals_are_those_of_the_items_whatever_an_older_file_holds(comparison: Comparison, tmp_path: Path) -> None:
    one, file = comparison.evaluated[0], tmp_path / "results.json"
    stale = {name: replace(task, metrics={metric: replace(of, interval=(0.5, 1.5)) for metric, of in
                                          {**task.metrics, "no mean": Metric(1.0, (0.0, 2.0), 4)}.items()})
             for name, task in one.results.tasks.items()}  # fmt: skip
    replace(one.results, tasks=stale).write(file)
    for name, items in one.items.items():
        write_items(items_folder(file), name, items)
    read = Evaluated.read(file, "instruct").results.tasks
    for name, task in one.results.tasks.items():
        assert read[name].metrics == {**task.metrics, "no mean": stale[name].metrics["no mean"]}


def test_a_page_says_what_its_rows_share_and_in_what_they_differ(comparison: Comparison, tmp_path: Path) -> None:
    settings = {"prompts": "a.jsonl", "limit": None, "source": "arXiv"}
    first, *others = comparison.evaluated
    now = {"precision": "float32", "date": "2026-11-30T01:00", "versions": {"inscp": "0.1.0"}, "hardware": "a chip"}
    asked = [{**now, "settings": {"language": settings | {"max_new_tokens": 4}}},
             {**now, "settings": {"language": settings | {"max_new_tokens": 8}}, "precision": "bfloat16"}]  # fmt: skip
    training = {"learning_rate": 2e-5, "precision": "32-true", "made_with": "inscp 0.0.9"}
    origin = Origin("org/model", "InsCP", "en", training)
    rows = [replace(first, results=replace(first.results, environment=asked[0])),
            replace(others[0], results=replace(others[0].results, environment=asked[1]), origin=origin)]  # fmt: skip
    page = comparison_page(Comparison(rows, "instruct"), "?", "?", tmp_path)
    assert page.about[""] == {
        "model": "instruct; model: InsCP | ours",
        "reference": "instruct, with which the others are compared",
        "learning rate": "2e-05",
        "precision of training": "32-true",
        "versions of training": "inscp 0.0.9",
        "precision of answers": "float32; bfloat16: InsCP | ours",
        "language": "LanguageAlignment, 4 items, prompts: a.jsonl, max_new_tokens: 4",
        "retention": "Retention, 2 items",
        "hardware": "a chip",
        "date": "2026-11-30",
        "versions": "inscp 0.1.0",
        "different settings: InsCP | ours": "language: max_new_tokens 4, after 8",
    }
    assert page.about["Terms"].keys() == {"well-formed"}
    page.write(tmp_path)
    for form in ("report.md", "report.html"):
        assert "max_new_tokens 4, after 8" in (tmp_path / form).read_text("utf-8")


def test_two_tasks_of_one_kind_have_heads_of_their_own(comparison: Comparison) -> None:
    def twice(one: Evaluated) -> Evaluated:
        tasks = {**one.results.tasks, "chat": one.results.tasks["language"]}
        items = {**one.items, "chat": one.items["language"]}
        return replace(one, results=replace(one.results, tasks=tasks), items=items)

    tables = Comparison([twice(one) for one in comparison.evaluated], "instruct").tables()
    for table in tables:
        assert len({column.label for column in table.columns}) == len(table.columns)
    assert [column.label for column in tables[0].columns] == ["language, en prompt: en", "chat, en prompt: en"]


def test_rows_that_were_asked_in_different_languages_have_no_plot_of_both(
    comparison: Comparison, tmp_path: Path
) -> None:
    def asked(one: Evaluated, metric: str) -> Evaluated:
        answers = [Item(f"{n}", {metric: True}) for n in range(4)]
        language = replace(one.results.tasks["language"], metrics=means(answers))
        results = replace(one.results, tasks={**one.results.tasks, "language": language})
        return replace(one, results=results, items={**one.items, "language": answers})

    original, other = comparison.evaluated[:2]
    apart = Comparison([asked(original, "en/in_language"), asked(other, "zh-TW/sound_in_language")], "instruct")
    assert comparison_page(apart, "?", "?", tmp_path).sections
    assert gained_and_kept(apart, "zh-TW", "en") is None


def test_names_in_plots_are_no_formulae(
    comparison: Comparison, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    renamed = [replace(one, row=f"{one.row} cost $x_$ 中文") for one in comparison.evaluated]
    comparison_page(Comparison(renamed, renamed[0].row), "?", "?", tmp_path)
    assert (tmp_path / "en_perplexities.png").exists()
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]
