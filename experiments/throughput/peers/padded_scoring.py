"""Scores texts with transformers in batches of eight, padded to the longest, as most scripts do."""

import torch
import torch.nn.functional as F
from loop import given, timed_scoring
from transformers import AutoModelForCausalLM, AutoTokenizer

options = given()
tokenizer = AutoTokenizer.from_pretrained(options["model"])
model = AutoModelForCausalLM.from_pretrained(options["model"], dtype=getattr(torch, options["dtype"])).eval()
begin = tokenizer.convert_tokens_to_ids(options["begin"])


@torch.no_grad()
def score(texts: list[str]) -> list[float]:
    nlls = []
    for start in range(0, len(texts), 8):
        ids = [[begin, *tokenizer(text, add_special_tokens=False)["input_ids"]] for text in texts[start : start + 8]]
        longest = max(map(len, ids))
        input_ids = torch.tensor([row + [begin] * (longest - len(row)) for row in ids])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids])
        logits = model(input_ids=input_ids, attention_mask=mask).logits[:, :-1].float()
        each = F.cross_entropy(logits.transpose(1, 2), input_ids[:, 1:], reduction="none")
        nlls += (each * mask[:, 1:]).sum(1).tolist()
    return nlls


timed_scoring(score, options)
