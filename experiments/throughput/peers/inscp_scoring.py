"""Scores texts with this project's scorer."""

import torch
from loop import given, timed_scoring

from inscp.model.allocator import keep_freed_memory
from inscp.model.loss import NextTokenLoss
from inscp.pretrained import load_model, load_tokenizer
from inscp.records import Record, Turn
from inscp.selection.perplexity import Scorer, Scoring

options = given()
keep_freed_memory()
loss = NextTokenLoss(load_model(options["model"], getattr(torch, options["dtype"])))
scorer = Scorer(loss, load_tokenizer(options["model"]), Scoring(window=2048), batch_tokens=4096)


def score(texts: list[str]) -> list[float]:
    records = [Record(str(place), (Turn("document", text),)) for place, text in enumerate(texts)]
    return [found.nll for found in scorer.score(records, print, lambda *_: None)]


timed_scoring(score, options)
