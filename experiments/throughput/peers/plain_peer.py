"""A training loop as tutorials write it, on transformers: a peer of `measure.py`."""

import torch
from loop import given, read_texts, train
from transformers import AutoModelForCausalLM, AutoTokenizer

options = given()
tokenizer = AutoTokenizer.from_pretrained(options["model"])
texts = [text + tokenizer.eos_token for text in read_texts(options["texts"])]
model = AutoModelForCausalLM.from_pretrained(options["model"], dtype=torch.float32).to(options["device"]).train()


def loss_of(batch: torch.Tensor) -> torch.Tensor:
    with torch.autocast(batch.device.type, torch.bfloat16, enabled=options["precision"] == "bf16"):
        return model(input_ids=batch, labels=batch).loss


train(options, [token for ids in tokenizer(texts)["input_ids"] for token in ids], model, loss_of)
