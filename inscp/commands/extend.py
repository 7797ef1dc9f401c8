"""`extend`: add tokens for a language to a model's vocabulary."""

from pathlib import Path
from shlex import quote
from typing import Literal

import torch

from inscp.commands.parser import call
from inscp.data.pipeline import Sources, as_sources
from inscp.data.sources import OnBadRecord, ReadReport, read_records
from inscp.errors import UserError
from inscp.model.export import export_model
from inscp.model.origin import EXTENDED, Origin, read_origin
from inscp.model.vocabulary import count_tokens, extended, learn_tokens, resize_embeddings
from inscp.paths import require_new
from inscp.pretrained import load_model, load_tokenizer, require_dense, with_its_code
from inscp.progress import print_skipped
from inscp.records import require_language_tag


def run(command: str, arguments: list[str]) -> None:
    """`python -m inscp extend --model M --data D --out DIR`"""
    call(command, extend, arguments)


def extend(
    model: str,
    data: Sources,
    out: str,
    tokens: int = 4000,
    language: str = "und",
    on_bad_record: OnBadRecord = "error",
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
) -> None:
    """Add tokens for a language to a model before training, so that the same text takes fewer tokens.

    Args:
        model: folder, Hub id, GGUF file or PyPI wheel of a model.
        data: text in the language: a path, a Hub id, or a list of sources with options, as for data.train of `fit`. It
            is held in memory; some ten megabytes are enough (`limit`).
        out: folder to create.
        tokens: number of new tokens.
        language: BCP 47 tag of the language, for the model card.
        on_bad_record: stop at an invalid record (`error`), or skip it (`skip`).
        dtype: dtype of the saved weights.
    """
    if tokens < 1:
        raise UserError("tokens", f"must be at least 1, not {tokens}", "Give 4000, say.")
    require_new(Path(out))
    require_language_tag("language", language)
    require_dense(model)
    tokenizer, sources = load_tokenizer(model), as_sources(data)
    reads = [(source, ReadReport()) for source in sources]
    records = (record for source, report in reads for record in read_records(source, on_bad_record, report))
    texts = [turn.text for record in records for turn in record.turns]
    extension = learn_tokens(tokenizer, texts, tokens)
    if not extension.made_of:
        raise UserError("data", "no pair of tokens occurs twice in it", "Give more text.")
    longer = extended(tokenizer, extension)
    before, after = (count_tokens(of, texts) for of in (tokenizer, longer))
    result = load_model(model, getattr(torch, dtype))
    resize_embeddings(result, tokenizer, extension)
    n_records = sum(report.records for _, report in reads)
    settings = {
        "new tokens": len(extension.made_of),
        "learned from": f"{n_records:,} records of {', '.join(Path(source.path).name for source in sources)}",
        "tokens of these texts": f"{before:,} before, {after:,} after",
    }
    origin = Origin(model, EXTENDED, language, settings, before=read_origin(model))
    export_model(result, longer, Path(out), origin, getattr(torch, dtype))
    for source, report in reads:
        print_skipped(source.name, report.skipped, report.examples)
    share = f"{after:,} instead of {before:,} ({after / before:.0%})"
    fewer = " (no other pair occurs twice)" if len(extension.made_of) < tokens else ""
    print(f"tokens     {len(extension.made_of):,} new ones{fewer}; the texts now take {share}")
    named = quote(with_its_code(model, out))
    print(f"model      {out}\n\nnext:\n  python -m inscp fit --config … --model.pretrained {named}")
