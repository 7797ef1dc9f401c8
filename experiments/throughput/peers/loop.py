"""What the peers of `measure.py` share: what they are given, a plain training loop, and how they report."""

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def given() -> dict[str, Any]:
    """The options of the one argument."""
    return dict(json.loads(sys.argv[1]))


def read_texts(path: str) -> list[str]:
    """One text a line."""
    with Path(path).open(encoding="utf-8") as file:
        return [json.loads(line)["text"] for line in file]


def train(
    options: dict[str, Any], ids: list[int], model: torch.nn.Module, loss_of: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """AdamW over rows cut from one stream of token ids, documents not kept apart; reports at the end."""
    rows, length = options["rows"], options["row_length"]
    size = rows * length
    batches = torch.tensor(ids[: len(ids) // size * size]).view(-1, rows, length)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    times, tokens = [], []
    for step in range(options["steps"]):
        loss = loss_of(batches[step % len(batches)].to(options["device"]))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        float(loss)
        times.append(time.perf_counter())
        tokens.append(rows * (length - 1))
    report(times, tokens, peak_kib())


def peak_kib() -> int:
    """The highest memory so far: of the GPU's tensors, else the process's."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() // 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def report(times: list[float], tokens: list[int], peak: int) -> None:
    """When each step ended, how many tokens it trained on, and the peak in KiB."""
    print("RESULT", json.dumps({"times": times, "tokens": tokens, "peak_kib": peak}))


def timed_scoring(score: Callable[[list[str]], list[float]], options: dict[str, Any]) -> None:
    """Score the texts, the first eight of them once before the clock starts, and report."""
    texts = read_texts(options["texts"])
    score(texts[:8])
    start = time.perf_counter()
    nlls = score(texts)
    result = {"seconds": time.perf_counter() - start, "nlls": nlls, "peak_kib": peak_kib()}
    print("RESULT", json.dumps(result))
