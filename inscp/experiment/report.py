"""The report of a study: one section per language, with the arms side by side and their cost."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from inscp.errors import UserError
from inscp.experiment import plots
from inscp.experiment.about import arms, asked_otherwise, setting, words
from inscp.experiment.costs import cost_grids
from inscp.experiment.goals import goal_grids
from inscp.experiment.histories import History, side_by_side
from inscp.experiment.page import Page, Section, grids
from inscp.experiment.places import Place, Places
from inscp.experiment.runs import Run, named
from inscp.experiment.study import Study
from inscp.experiment.tables import Comparison, Evaluated

_Rows = dict[str, list[Place]]
"""Row -> the places of its seeds, for one language."""


def study_page(study: Study, runs: Sequence[Run], given: str, where: Places, folder: Path) -> Page:
    """The report on the finished runs; its plots are written into `folder`.

    Args:
        study: the study.
        runs: all of its runs.
        given: study folder, as the user named it.
        where: where its runs are.
        folder: folder of the page.

    Raises:
        UserError: no run has been measured yet.
    """
    places = [at for run in runs if run.evaluate and (at := where.measured_or_made(run)).results.is_file()]
    if not places:
        fix = f"Run `{where.command('run', given)}` first." if study.evaluate else "Add `evaluate` to the study."
        raise UserError(given, "nothing has been evaluated yet", fix)
    has_budgets = len({at.run.budget for at in places if at.run.budget}) > 1
    languages: dict[str, _Rows] = {}
    for at in places:
        languages.setdefault(at.run.language, {}).setdefault(_row(at.run, has_budgets), []).append(at)
    compared = {language: _compared(study, rows) for language, rows in languages.items()}
    sections = [_study_section(study, language, rows, compared[language], has_budgets, folder)
                for language, rows in languages.items()]  # fmt: skip
    about = {
        "": setting(list(compared.values())),
        "Arms": arms(study, {at.run.arm for at in places}),
        **words(sections),
    }
    measured = {at.run.name for at in places}
    missing = [run for run in runs if run.evaluate and run.name not in measured]
    lacking = ", ".join(language for language, rows in languages.items() if compared[language].reference not in rows)
    facts = {
        "command": where.command("run", given),
        "runs": f"{len(places)} of {len(places) + len(missing)} measured",
        "not measured": named(missing),
        "no changes": f"{study.baseline} is not measured in {lacking}" if lacking else "",
    }
    return Page(study.name, study.question, about, sections, {name: fact for name, fact in facts.items() if fact})


def _compared(study: Study, rows: _Rows) -> Comparison:
    evaluated = [Evaluated.read(at.results, row, at.run.seed, at.origin) for row, of in rows.items() for at in of]
    return Comparison(evaluated, _row_of(study.baseline, rows))


def _study_section(
    study: Study, language: str, rows: _Rows, comparison: Comparison, has_budgets: bool, folder: Path
) -> Section:
    """The section on one language of a study."""
    runs = {row: of[0].run for row, of in rows.items()}  # the seeds of a row differ in nothing else
    amounts = {row: _amount(run, has_budgets) for row, run in runs.items()}
    trained = {row: run.tokens for row, run in runs.items() if run.command}
    section = _section(comparison, language, study.kept, amounts, _histories(rows), folder)
    chosen = goal_grids(comparison, study.goals, language, trained)
    return replace(section, grids=[*chosen, *section.grids, *cost_grids(rows, study.projected)])


def comparison_page(comparison: Comparison, title: str, question: str, folder: Path) -> Page:
    """A report on any evaluations, side by side."""
    section = _section(comparison, "", "en", {}, {}, folder)
    about = {"": setting([comparison]) | asked_otherwise(comparison), **words([section])}
    return Page(title, question, about, [section], {})


def _section(
    comparison: Comparison,
    language: str,
    kept: str,
    amounts: Mapping[str, plots.Amount],
    histories: Mapping[str, History],
    folder: Path,
) -> Section:
    target = language or _taught(comparison, kept)
    curves, others = side_by_side(histories)
    apart = f", without the per-token losses of other vocabularies: {'; '.join(others)}" if others else ""
    wanted: dict[str, tuple[str, plots.Plot]] = {
        "answers": (f"Answers to {target} prompts", partial(plots.bars, comparison, target)),
        "kept": (f"{kept} kept against {target} gained", partial(plots.gained_and_kept, comparison, target, kept)),
        "tokens": (f"{target} against tokens", partial(plots.against_tokens, comparison, amounts, target)),
        "perplexities": ("Held-out perplexity, text by text", partial(plots.perplexity_bands, comparison)),
        "training": (f"Training{apart}", partial(plots.curves, curves, list(comparison.by_row))),
    }
    files = {name: folder / f"{target}_{name}.png" for name in wanted}
    shown = {caption: files[name] for name, (caption, plot) in wanted.items() if plots.draw(plot, files[name])}
    tables = [grid for table in comparison.tables() for grid in grids(table, comparison.reference)]
    return Section(language, tables, shown)


def _taught(comparison: Comparison, kept: str) -> str:
    """The first prompt language other than the one to preserve, if there is another; empty without prompts."""
    asked = {
        metric.partition("/")[0]
        for one in comparison.evaluated
        for result in one.results.tasks.values()
        if result.kind == "LanguageAlignment"
        for metric in result.metrics
    }
    return min(asked, key=lambda name: (name == kept, name), default="")


def _histories(rows: _Rows) -> dict[str, History]:
    """Row -> the history of its first seed that has curves."""
    found: dict[str, History] = {}
    for row, places in rows.items():
        trained = (History.of(at.measured_model) for at in places if at.run.trains and at.measured_model)
        if of := next((one for one in trained if one.curves), None):
            found[row] = of
    return found


def _row(run: Run, has_budgets: bool) -> str:
    return f"{run.arm}, {run.amount}" if has_budgets and run.amount else run.arm


def _amount(run: Run, has_budgets: bool) -> plots.Amount:
    before = run.before
    after = _row(before, has_budgets) if before and before.tokens not in (None, run.tokens) else ""
    return plots.Amount(run.arm, run.tokens if run.command else 0, after)


def _row_of(arm: str, rows: _Rows) -> str:
    """The row of an arm: that of its largest budget."""
    found = {row: of[0].run.tokens or of[0].run.budget or 0 for row, of in rows.items() if of[0].run.arm == arm}
    return max(found, key=found.__getitem__, default=arm)
