"""litgpt's model of the same shape with its chunked loss in a plain loop, pure bf16: a peer of `measure.py`."""

import torch
from litgpt import GPT, Config
from litgpt.utils import chunked_cross_entropy
from loop import given, read_texts, train
from tokenizers import Tokenizer

options = given()
tokenizer = Tokenizer.from_file(f"{options['model']}/tokenizer.json")
texts = [text + "<|im_end|>" for text in read_texts(options["texts"])]
with torch.device(options["device"]):
    torch.set_default_dtype(torch.bfloat16 if options["precision"] == "bf16" else torch.float32)
    model = GPT(Config.from_name("SmolLM2-135M-Instruct", padded_vocab_size=49152)).train()
model.lm_head.weight = model.transformer.wte.weight  # tied, as in the model that the others train


def loss_of(batch: torch.Tensor) -> torch.Tensor:
    logits = model(batch, lm_head_chunk_size=128)
    logits[-1] = logits[-1][:, :-1]
    return chunked_cross_entropy(logits, batch[:, 1:], chunk_size=128)


train(options, [token for encoding in tokenizer.encode_batch(texts) for token in encoding.ids], model, loss_of)
