"""Memory of a training step by the length of its row: the estimate that `doctor` makes, and a real step's peak.

    python experiments/throughput/memory.py                                    # 1k, 2k, 4k and 8k tokens
    python experiments/throughput/memory.py --measured 1024 4096               # which of them are really trained

One row of packed documents of the shipped sample, all weights, fp32. Both are what a step takes on top of weights and
optimizer states. Each length is a process of its own.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

from measure import HERE, QUICKSTART, machine

LENGTHS = (1024, 2048, 4096, 8192)


def estimated(model: str, length: int, checkpointing: str) -> int:
    """Bytes at the step's peak beside weights and states, with what the C library keeps; the row is one document."""
    from inscp.model.memory import Layout, Shape, meta_model, step_memory
    from inscp.model.module import InsCPModule
    from inscp.model.strategies import OneDevice

    module = InsCPModule(model, activation_checkpointing=checkpointing)  # type: ignore[arg-type]
    found = step_memory(meta_model(module), module, Layout(OneDevice()), Shape(1, length), keeps_freed=True)
    return found.activations + found.gradients + found.kept


def measured(model: str, length: int, checkpointing: str) -> int:
    """Bytes by which a real step raises the resident memory."""
    from inscp.data.pipeline import PackedRows, Pipeline, as_sources
    from inscp.data.sampling import MicroBatch
    from inscp.data.tagging import InsCPTagger
    from inscp.model.allocator import return_freed_memory
    from inscp.model.loss import NextTokenLoss
    from inscp.model.module import InsCPModule
    from inscp.model.optim import initialise_states
    from inscp.pretrained import load_model, load_tokenizer

    sources = as_sources(["samples:zh_tw/train_pairs.jsonl", "samples:zh_tw/train_passages.jsonl"])
    rows = PackedRows(Pipeline(sources, load_tokenizer(model), InsCPTagger(), length).rows())
    module = InsCPModule(model, activation_checkpointing=checkpointing)  # type: ignore[arg-type]
    loss = NextTokenLoss(module.bare_model(load_model).train())
    optimizer = module.optimizer.build(list(loss.parameters()))
    initialise_states(optimizer)
    batch = rows[MicroBatch((0,), length, length)]
    return_freed_memory()
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = resident("VmRSS")
    (loss(batch).total / batch.step_targets).backward()
    optimizer.step()
    return resident("VmHWM") - before


def resident(key: str) -> int:
    """Bytes of this process, now (`VmRSS`) or at most (`VmHWM`)."""
    return 1024 * int(re.search(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text())[1])  # type: ignore[index]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=QUICKSTART)
    parser.add_argument("--lengths", type=int, nargs="*", default=LENGTHS)
    parser.add_argument("--measured", type=int, nargs="*", default=LENGTHS)
    parser.add_argument("--one", help="what to find, at which length, with which checkpointing: in this process")
    given = parser.parse_args()
    if given.one:
        what, length, checkpointing = json.loads(given.one)
        print("BYTES", {"estimated": estimated, "measured": measured}[what](given.model, length, checkpointing))
        return
    print(machine(), "\n")
    found: dict[str, dict[int, float]] = {}
    for checkpointing in ("none", "block"):
        for what, lengths in (("estimated", given.lengths), ("measured", given.measured)):
            curve = found[f"{checkpointing}, {what}"] = {}
            for length in lengths:
                one = json.dumps([what, length, checkpointing])
                command = [sys.executable, __file__, "--model", given.model, "--one", one]
                told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                curve[length] = int(told.split("BYTES ")[1]) / 2**30
                print(f"{checkpointing}, {what}, {length} tokens: {curve[length]:.2f} GiB", file=sys.stderr, flush=True)
    print("| activation_checkpointing | " + " | ".join(f"{length:,}" for length in given.lengths) + " |")
    print("|---" * (1 + len(given.lengths)) + "|")
    found = {name: curve for name, curve in found.items() if curve}
    for name, curve in found.items():
        cells = (f"{curve[length]:.2f}" if length in curve else "" for length in given.lengths)
        print(f"| {name} | " + " | ".join(cells) + " |")
    plot(found, HERE / "results" / "memory.png")


def plot(found: dict[str, dict[int, float]], path: Path) -> None:
    """The curves, and a line from the first point that grows as the hidden states do."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as pyplot

    figure, axis = pyplot.subplots(figsize=(6, 3.5))
    for name, curve in found.items():
        axis.plot(list(curve), list(curve.values()), "o-" if "estimated" in name else "x", label=name)
    first = found["none, estimated"]
    start = min(first)
    line = [first[start] * length / start for length in first]
    axis.plot(list(first), line, ":", color="grey", label="in proportion to the tokens")
    axis.set_xlabel("tokens a row")
    axis.set_ylabel("GiB beside weights and states")
    axis.set_ylim(bottom=0)
    axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
