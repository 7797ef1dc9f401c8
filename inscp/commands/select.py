"""`select`: the records worth training on, by a declared list of filters and a token budget."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from inscp.commands.parser import call
from inscp.commands.quiet import quiet
from inscp.data.cache import fingerprint
from inscp.data.pipeline import Sources, as_sources
from inscp.data.sources import OnBadRecord, ReadReport, Source, read_records, source_fingerprint
from inscp.errors import UserError
from inscp.lines import tell_skipped, telling
from inscp.paths import written_whole
from inscp.pretrained import load_tokenizer
from inscp.records import Candidate
from inscp.selection import report as reports
from inscp.selection.budget import Budget, take
from inscp.selection.candidates import bounded, counted, scored
from inscp.selection.duplicates import ExactDuplicates, NearDuplicates  # noqa: F401  # configs name the filters
from inscp.selection.filters import Filter, Length, Perplexity  # noqa: F401
from inscp.selection.languages import Chinese, Language, Script  # noqa: F401
from inscp.selection.quality import BrokenText, Contamination, PersonalData, Refusals  # noqa: F401
from inscp.selection.scores import ScoreFolder
from inscp.selection.select import Funnel
from inscp.selection.spool import Spool


def run(command: str, arguments: list[str]) -> None:
    """`python -m inscp select --config …`"""
    quiet()
    call(command, select, arguments)


def select(
    data: Sources,
    out: str,
    filters: list[Filter] | None = None,
    budget: Budget | None = None,
    scores: str | None = None,
    model: str | None = None,
    max_characters: int = 1_000_000,
    on_bad_record: OnBadRecord = "error",
    examples: int = 20,
    seed: int = 0,
) -> None:
    """Choose records; writes a folder that data.train of a training takes, and a report of what was dropped and why.

    Args:
        data: a path, a Hub id, or a list of sources with options, as data.train of a training.
        out: the new folder: Parquet, _report.json and _report.html.
        filters: class_path and init_args of each, in the order in which they are applied.
        budget: how many tokens to keep of what the filters leave, and which.
        scores: the folder that `score` wrote for this data.
        model: whose tokenizer counts tokens, where there are no scores.
        max_characters: a longer record is a bad one, where there are no scores.
        on_bad_record: stop, or skip and count (a record without a score is one).
        examples: shown in the report of what each filter drops, and of what is kept.
        seed: of which examples are shown.
    """
    if scores is None and model is None:
        raise UserError("select", "nothing tells how many tokens a record has", "Give `scores`, or `model`.")
    folder = Path(out)
    if folder.exists():
        raise UserError(out, "it is there already", "Give another `out`, or remove it.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    sources = as_sources(data)
    read = {source.name: ReadReport() for source in sources}
    if len(read) < len(sources):
        raise UserError("data", "one source is named twice", "Name each once.")
    digests = {source.name: source_fingerprint(source) for source in sources}
    score_folder = ScoreFolder(Path(scores)) if scores else None
    spec = model or (score_folder.made_by["model"] if score_folder else "")

    steps = [*(filters or []), *([budget] if budget else [])]
    replay = as_sources([budget.replay]) if budget and budget.replay is not None else []
    tokenizer = load_tokenizer(spec) if replay or not score_folder else None  # fails before the long reading

    def candidates(of: Iterable[Source], with_scores: ScoreFolder | None) -> Iterator[Candidate]:
        for source in of:
            report = read.setdefault(source.name, ReadReport())
            if with_scores:
                yield from scored(source, digests[source.name], with_scores, on_bad_record, report)
            else:
                records = read_records(source, on_bad_record, report)
                yield from counted(source, tokenizer, bounded(records, max_characters, on_bad_record, report))  # type: ignore[arg-type]

    funnel = Funnel(steps, examples, seed)
    settings: dict[str, Any] = {
        "fingerprint": fingerprint(list(digests.values()), score_folder and score_folder.made_by,
                                   [repr(step) for step in steps], spec, max_characters, on_bad_record,
                                   [source_fingerprint(s) for s in replay], [one.contents() for one in steps]),
        "sources": list(read),
        "scores": scores,
        "scoring_cost": score_folder.cost if score_folder else {},
        "model": spec,
    }  # fmt: skip
    with written_whole(folder) as partial:
        written = funnel.run(telling(candidates(sources, score_folder), "reading"), partial / "selected.parquet")
        for source in replay if written else []:
            assert budget is not None
            settings["replay"] = _write_replay(source, budget, candidates([source], None), partial)
        settings["skipped"] = {path: dict(r.skipped) for path, r in read.items() if r.skipped}
        report = reports.as_dict(funnel, settings)
        if not written:
            _tell(report)
            where = next((step.name for step in funnel.steps if not step.records), out)
            raise UserError(where, "it leaves no record", "Loosen it; nothing was written.")
        reports.write(report, partial)
    _tell(report)
    print(f"\nselected   {folder}\nreport     {folder / reports.HTML}\n\nnext:\n"
          f"  python -m inscp fit --config … --data.train {folder}")  # fmt: skip


def _tell(report: dict[str, Any]) -> None:
    print("\n".join(reports.lines(report)))
    tell_skipped(report["skipped"])


def _write_replay(source: Source, budget: Budget, candidates: Iterator[Candidate], folder: Path) -> dict[str, Any]:
    """Take the replay's tokens at random; returns what was taken."""
    spool = Spool(folder / "replay.partial")
    spool.write(candidates)
    sizes = np.array([candidate.n_tokens for candidate in spool], dtype=np.int64)
    if sizes.sum() < budget.replay_tokens and budget.on_shortage == "error":
        what = f"{budget.replay_tokens:,} tokens of replay are asked for and {source.path} has {int(sizes.sum()):,}"
        raise UserError("budget.replay_share", what, "Ask for fewer, or set budget.on_shortage all.")
    order = np.random.default_rng(budget.seed).permutation(len(sizes))
    chosen = np.zeros(len(sizes), dtype=bool)
    chosen[order] = take(sizes[order], budget.replay_tokens)
    Spool(folder / "replay.parquet").write(c for c, keeps in zip(spool, chosen, strict=True) if keeps)
    (folder / "replay.partial").unlink()
    return {"path": source.path, "records": int(chosen.sum()), "tokens": int(sizes[chosen].sum())}
