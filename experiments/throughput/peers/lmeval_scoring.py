"""Scores texts by the rolling likelihood of lm-evaluation-harness."""

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from loop import given, timed_scoring
from transformers import AutoTokenizer

options = given()
begin = AutoTokenizer.from_pretrained(options["model"]).convert_tokens_to_ids(options["begin"])
harness = HFLM(pretrained=options["model"], dtype=options["dtype"], device="cpu", batch_size=8, max_length=2048,
               prefix_token_id=begin)  # fmt: skip


def score(texts: list[str]) -> list[float]:
    requests = [Instance("loglikelihood_rolling", {}, (text,), place) for place, text in enumerate(texts)]
    return [-value for value in harness.loglikelihood_rolling(requests, disable_tqdm=True)]


timed_scoring(score, options)
