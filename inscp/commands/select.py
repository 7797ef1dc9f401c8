"""`select`: choose the records worth training on, by a list of filters and a token budget."""

from pathlib import Path
from shlex import quote
from typing import Any

from inscp.commands.parser import call
from inscp.data.cache import fingerprint
from inscp.data.pipeline import Sources, as_sources
from inscp.data.sources import OnBadRecord, require_outside
from inscp.errors import UserError
from inscp.paths import atomic_folder, require_new
from inscp.pretrained import load_tokenizer
from inscp.progress import print_skipped, with_progress
from inscp.selection import report as reports
from inscp.selection.budget import Budget
from inscp.selection.candidates import Candidates
from inscp.selection.duplicates import ExactDuplicates, NearDuplicates  # noqa: F401  # configs name the filters
from inscp.selection.filters import Length, Perplexity, Selector  # noqa: F401
from inscp.selection.languages import Chinese, Language, Script  # noqa: F401
from inscp.selection.quality import BrokenText, Contamination, PersonalData, Refusals  # noqa: F401
from inscp.selection.scores import ScoreFolder
from inscp.selection.select import Funnel


def run(command: str, arguments: list[str]) -> None:
    """`python -m inscp select --config …`"""
    call(command, select, arguments)


def select(
    data: Sources,
    out: str,
    filters: list[Selector] | None = None,
    budget: Budget | None = None,
    scores: str | None = None,
    model: str | None = None,
    max_characters: int = 1_000_000,
    on_bad_record: OnBadRecord = "error",
    examples: int = 20,
    seed: int = 0,
) -> None:
    """Select records; writes a folder for data.train of `fit`, and a report of what was dropped and why.

    Args:
        data: a path, a Hub id, or a list of sources with options, as for data.train of `fit`.
        out: folder to create, with Parquet files, _report.json and _report.html.
        filters: class_path and init_args of each filter, in the order in which they are applied.
        budget: number of tokens to keep after filtering, and how to rank them.
        scores: folder written by `score` for this data.
        model: model whose tokenizer counts the tokens, if there are no scores.
        max_characters: maximum characters per record, if there are no scores; a longer record is invalid.
        on_bad_record: stop at an invalid record (`error`), or skip and count it (`skip`). A record without a score is
            invalid too.
        examples: number of example records in the report, per filter (dropped) and kept.
        seed: random seed for the choice of these examples.
    """
    if scores is None and model is None:
        raise UserError("select", "there is nothing to count tokens with", "Give `scores` or `model`.")
    folder, sources = Path(out), as_sources(data)
    require_new(folder)
    require_outside(folder, sources)
    folder.parent.mkdir(parents=True, exist_ok=True)
    steps = [*(filters or []), *([budget] if budget else [])]
    score_folder = ScoreFolder(Path(scores)) if scores else None
    spec = model or (score_folder.made_by["model"] if score_folder else "")
    replay_sources = as_sources([budget.replay] if budget and budget.replay is not None else [])
    counts = score_folder is None or not score_folder.counts_whole_records
    tokenizer = load_tokenizer(spec) if replay_sources or counts else None  # fails before the data is read
    candidates = Candidates(sources, score_folder, tokenizer, max_characters, on_bad_record)
    replay = Candidates(replay_sources, None, tokenizer, max_characters, on_bad_record)
    settings = _settings(candidates, replay, steps, spec)
    funnel = Funnel(steps, examples, seed)
    with atomic_folder(folder) as partial:
        if budget and replay.sources:
            settings["replay"] = _write_replay(replay, budget, partial)
        try:
            written = funnel.run(with_progress(candidates, "reading"), partial / "selected.parquet")
        except UserError as error:
            if error.where == "budget.tokens":  # the filters have left too little
                _tell(reports.as_dict(funnel, settings | _skipped(candidates)))
            raise
        report = reports.as_dict(funnel, settings | _skipped(candidates, replay))
        _tell(report)
        if not written:
            where = next((step.name for step in funnel.steps if not step.records), out)
            raise UserError(where, "it drops every record; nothing was written", "Loosen it.")
        reports.write(report, partial)
    print(f"\nselected   {folder}\nreport     {folder / reports.HTML}\n\nnext:\n"
          f"  python -m inscp fit --config … --data.train {quote(str(folder))}")  # fmt: skip


def _settings(candidates: Candidates, replay: Candidates, steps: list[Selector], model: str) -> dict[str, Any]:
    """What determines the selection, with its fingerprint, for the report."""
    scores = candidates.scores
    return {
        "fingerprint": fingerprint(candidates.fingerprints, scores and scores.made_by, [repr(step) for step in steps],
                                   model, candidates.max_characters, candidates.on_bad_record, replay.fingerprints,
                                   [step.contents() for step in steps]),
        "sources": [source.name for source in candidates.sources],
        "scores": str(scores.folder) if scores else None,
        "scoring_cost": scores.cost if scores else {},
        "model": model,
    }  # fmt: skip


def _write_replay(replay: Candidates, budget: Budget, folder: Path) -> dict[str, Any]:
    """Write the replay that the budget requests; returns what was taken."""
    funnel = Funnel([budget.replay_budget()], 0, budget.seed)
    written = funnel.run(replay, folder / "replay.parquet")
    return {"path": replay.sources[0].path, "records": written, "tokens": funnel.after.tokens.total()}


def _skipped(*every: Candidates) -> dict[str, Any]:
    """The skipped records, for the report."""
    reads = {name: read for candidates in every for name, read in candidates.reads.items() if read.skipped}
    return {
        "skipped": {name: dict(read.skipped) for name, read in reads.items()},
        "first_skipped": {name: read.examples for name, read in reads.items()},
    }


def _tell(report: dict[str, Any]) -> None:
    print("\n".join(reports.lines(report)))
    for source, skipped in report["skipped"].items():
        print_skipped(source, skipped, report["first_skipped"][source])
