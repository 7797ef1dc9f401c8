"""`score`: the perplexity of every record under a model; on any number of ranks, and resumable."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from inscp.commands.parser import call
from inscp.cost.flops import WorkCounter
from inscp.cost.ledger import Cost, Ledger
from inscp.data.batching import batches
from inscp.data.pipeline import Sources, as_sources
from inscp.data.sources import (
    OnBadRecord,
    ReadReport,
    Source,
    bad_record,
    read_records,
    require_outside,
    source_fingerprint,
)
from inscp.errors import UserError
from inscp.model.allocator import keep_freed_memory
from inscp.model.device import attention_for, best_device, scoring_batch_tokens, scoring_model, sharded_model
from inscp.model.loss import NextTokenLoss
from inscp.model.parallel import shard
from inscp.model.precision import InferencePrecision, inference_dtype
from inscp.model.sharded import backend
from inscp.pretrained import load_tokenizer, longest_input, weights_fingerprint
from inscp.progress import ProgressLines, print_skipped
from inscp.records import Record
from inscp.selection.candidates import bounded, require_names
from inscp.selection.perplexity import Conditioning, Scorer, Scoring
from inscp.selection.scores import ScoreFolder, summary


def run(command: str, arguments: list[str]) -> None:
    """`python -m inscp score --model M --data FILE --out FOLDER`"""
    keep_freed_memory()
    call(command, score, arguments)


def score(
    model: str,
    data: Sources,
    out: str,
    given: Conditioning = "text",
    window: int = 2048,
    overlap: int | None = None,
    batch_tokens: int | None = None,
    precision: InferencePrecision | None = None,
    max_characters: int = 1_000_000,
    on_bad_record: OnBadRecord = "error",
    shard_model: bool = False,
    cost: Ledger = Ledger(),  # noqa: B008  # frozen
) -> None:
    """Score every record of the data: summed negative log-likelihood, tokens, perplexity, bits per byte.

    Rerun the same command to resume after an interruption. Under torchrun the ranks share the work.

    Args:
        model: folder, Hub id, GGUF file or PyPI wheel of a model.
        data: a path, a Hub id, or a list of sources with options, as for data.train of `fit`.
        out: folder for the scores, in Parquet.
        given: context of the scored text: none (`text`), the chat template with an empty user turn (`template`), or the
            record's prompt (`response`).
        window: tokens that the model sees at once.
        overlap: tokens of context that each later window of a long record repeats; by default 256, at most half the
            window.
        batch_tokens: maximum tokens per forward pass; by default 4096 on a CPU and 32768 on a GPU. A model that cannot
            keep packed texts apart scores each by itself.
        precision: number format of the computation; by default bf16 if the hardware is faster in it, else fp32.
        max_characters: maximum characters per record; a longer record is invalid.
        on_bad_record: stop at an invalid record (`error`), or skip and count it (`skip`).
        shard_model: shard the model over the ranks (FSDP2), if it does not fit on one.
        cost: cost accounting and prices.
    """
    rank, ranks = _join_ranks()
    sources = as_sources(data)
    require_names(sources)
    require_outside(Path(out), sources)
    read = partial(chunks, sources, max_characters, on_bad_record)
    reports = [ReadReport() for _ in sources]
    sizes = {
        chunk.place: chunk.characters for chunk in read(reports)
    }  # invalid records are found before anything is loaded
    tokenizer = load_tokenizer(model)
    window = min(window, longest_input(model))
    scoring = Scoring(given, window, min(256, window // 2) if overlap is None else overlap)
    scoring.tag(tokenizer)  # an unsuitable template is an error before the weights are loaded
    dtype = inference_dtype(precision)
    made_by = partial(_made_by, model, scoring, dtype, max_characters, sources)
    folder = _shared_folder(Path(out), made_by, rank, ranks)
    todo = {place for place in list(sizes)[rank::ranks] if not folder.has(*place)}
    earlier = Cost(**folder.cost) if folder.cost else None  # of existing scores
    running = cost.start(*_devices(ranks), earlier) if cost.enabled and rank == 0 else None
    counter = WorkCounter()

    def keep() -> None:
        """Save the cost so far, in case of a kill; until the end, the other ranks are assumed to equal this one."""
        if running:
            folder.write_report({"cost": running.cost(counter.tokens * ranks, counter.flops * ranks).plain()})

    try:
        if todo or shard_model:
            loss = _loss(model, dtype, shard_model)
            counter.watch(loss.model)
            scorer = Scorer(loss, tokenizer, scoring, scoring_batch_tokens(loss, batch_tokens), shard_model)
            lines = ProgressLines("scoring", sum(sizes[place] for place in todo), shows=rank == 0)
            mine = (chunk for chunk in read([ReadReport() for _ in sources]) if chunk.place in todo)
            _score_chunks(scorer, mine, folder, on_bad_record, lines, keep)
    except BaseException:
        if rank == 0:
            folder.remove_empty()
        raise
    work = _leave_ranks(counter, ranks)
    if rank == 0:
        _tell(folder, reports, running.stop(*work) if running else None)


@dataclass(frozen=True)
class Chunk:
    """Consecutive records of one source.

    Attributes:
        place: index of the source, and of the chunk in it.
        characters: total of its texts.
    """

    place: tuple[int, int]
    records: list[Record]
    characters: int


def chunks(
    sources: list[Source], max_characters: int, on_bad_record: OnBadRecord, reports: list[ReadReport]
) -> Iterator[Chunk]:
    """The sources in chunks of work, the same each time they are read.

    Args:
        sources: sources to read.
        max_characters: a longer record is invalid.
        on_bad_record: stop, or skip and count.
        reports: one per source, filled while its records are read.
    """
    for number, (source, report) in enumerate(zip(sources, reports, strict=True)):
        records = bounded(read_records(source, on_bad_record, report), max_characters, on_bad_record, report)
        for place, batch in enumerate(batches(records)):
            yield Chunk((number, place), batch, sum(record.n_characters for record in batch))


def _join_ranks() -> tuple[int, int]:
    """This process's rank and the number of ranks, from torchrun's environment variables."""
    ranks = int(os.environ.get("WORLD_SIZE", 1))
    if ranks > 1:
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group(
            backend(best_device().type), timeout=timedelta(days=30)
        )  # a rank that is done waits for the others
    return int(os.environ.get("RANK", 0)), ranks


def _leave_ranks(counter: WorkCounter, ranks: int) -> tuple[int, float]:
    """Tokens and FLOPs of all ranks together, once the last of them is done."""
    work = torch.tensor([counter.tokens, counter.flops], dtype=torch.float64)
    if ranks > 1:
        dist.all_reduce(work)
        dist.destroy_process_group()
    return int(work[0]), float(work[1])


def _made_by(
    model: str, scoring: Scoring, dtype: torch.dtype, max_characters: int, sources: list[Source]
) -> dict[str, Any]:
    """Everything that determines the scores."""
    return {
        "model": model, "weights": weights_fingerprint(model),
        "given": scoring.given, "window": scoring.window, "overlap": scoring.overlap,
        "precision": "bf16" if dtype == torch.bfloat16 else "fp32", "max_characters": max_characters,
        "sources": [{"name": s.name, "path": s.path, "fingerprint": source_fingerprint(s)} for s in sources],
    }  # fmt: skip


def _shared_folder(out: Path, made_by: Callable[[], dict[str, Any]], rank: int, ranks: int) -> ScoreFolder:
    """The folder of the scores, created by the first rank before the others look: the weights are hashed only once."""
    if rank > 0:
        dist.barrier()
    folder = ScoreFolder.create(out, made_by())
    if rank == 0 and ranks > 1:
        dist.barrier()
    return folder


def _devices(ranks: int) -> tuple[list[torch.device], int]:
    """The devices of this machine, and the number of machines."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    kind = best_device().type
    return [torch.device(kind, index) if kind == "cuda" else torch.device(kind) for index in range(here)], ranks // here


def _loss(spec: str, dtype: torch.dtype, is_sharded: bool) -> NextTokenLoss:
    if not is_sharded:
        return scoring_model(spec, dtype)
    if not dist.is_initialized():
        raise UserError("--shard_model", "there is only one rank", "Start it with torchrun --nproc-per-node N.")
    mesh = init_device_mesh(best_device().type, (dist.get_world_size(),))
    spread = partial(shard, mesh=mesh, compute_dtype=dtype, reshard_after_forward=True, cpu_offload=False)
    return sharded_model(spec, dtype, attention_for(dtype), best_device(), spread)


def _score_chunks(
    scorer: Scorer,
    work: Iterable[Chunk],
    folder: ScoreFolder,
    on_bad_record: OnBadRecord,
    lines: ProgressLines,
    on_chunk: Callable[[], None],
) -> None:
    """Score the chunks of this rank; each is saved as soon as it is done, and `on_chunk` is called."""
    for chunk in work:
        unscored = ReadReport()
        unusable = partial(bad_record, on_bad_record=on_bad_record, report=unscored)
        scores = scorer.score(chunk.records, unusable, partial(lines.advance, chunk.characters))
        folder.write(*chunk.place, scores, unscored.skipped)
        on_chunk()
    scorer.finish()


def _tell(folder: ScoreFolder, reports: list[ReadReport], cost: Cost | None) -> None:
    """Write the report and print it."""
    rows = [(source["name"], folder.numbers(number)) for number, source in enumerate(folder.sources)]
    every = tuple(np.concatenate(columns) for columns in zip(*(numbers for _, numbers in rows), strict=True))
    counts = [report.skipped + folder.unscored(number) for number, report in enumerate(reports)]
    skipped = {source["name"]: dict(count) for source, count in zip(folder.sources, counts, strict=True) if count}
    report = {name: summary(*columns) for name, columns in [*rows, ("all", every)]}
    folder.write_report({"sources": report, "skipped": skipped, "cost": cost.plain() if cost else folder.cost})
    print(f"{'':<40}{'records':>9}{'tokens':>12}{'perplexity':>12}{'bits/byte':>11}   per record: 5 %, median, 95 %")
    for name, row in report.items():
        if row["records"]:
            spread = "  ".join(f"{row[f'perplexity_p{place}']:,.1f}" for place in (5, 50, 95))
            print(f"{name[-38:]:<40}{row['records']:>9,}{row['tokens']:>12,}{row['perplexity']:>12,.2f}"
                  f"{row['bits_per_byte']:>11.3f}   {spread}")  # fmt: skip
    for source, count, read in zip(folder.sources, counts, reports, strict=True):
        print_skipped(source["name"], count, read.examples)
    print(f"\nscores     {folder.folder}" + (f"\ncost       {cost}" if cost else ""))
    print(f"\nnext:\n  python -m inscp select --config … --scores {quote(str(folder.folder))}")
