"""Scores the same texts with this project, a padded transformers loop and lm-evaluation-harness, in turn.

    python experiments/throughput/scoring.py --texts my.jsonl --records 400

Every measurement is a process of its own; loading the model is not counted. Texts of more than a window are left out,
because the three cut them differently.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

from measure import HERE, QUICKSTART, machine, python_of, write_texts

from inscp.data.tagging import PlainTagger
from inscp.paths import cache_folder
from inscp.pretrained import load_tokenizer, resolve
from inscp.records import Record, TemplateIds, Turn

SYSTEMS: dict[str, dict[str, Any]] = {
    "inscp": {"title": "inscp score", "peer": "inscp"},
    "padded": {"title": "transformers, batches of 8, padded", "peer": "padded", "install": ["transformers>=5.17,<6"]},
    "lmeval": {"title": "lm-evaluation-harness, rolling", "peer": "lmeval", "install": ["lm_eval[hf]==0.4.13"]},
}
_WINDOW = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=QUICKSTART)
    parser.add_argument("--texts", nargs="+", default=["samples:zh_tw/train_pairs.jsonl"])
    parser.add_argument("--records", type=int, default=400)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--environments", type=Path, default=cache_folder("peers"))
    parser.add_argument("--out", type=Path, default=HERE / "results")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    tokenizer = load_tokenizer(given.model)
    every = [json.loads(line)["text"] for line in write_texts(given.texts, folder / "all.jsonl").open(encoding="utf-8")]
    lengths = [len(ids) for ids in tokenizer(every, add_special_tokens=False)["input_ids"]]
    chosen = [(text, n) for text, n in zip(every, lengths, strict=True) if n < _WINDOW][: given.records]
    texts = folder / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text, _ in chosen), "utf-8")
    [document] = PlainTagger().bind(tokenizer)(Record("", (Turn("document", "x"),)))
    end = next(part.ids for part in reversed(document.parts) if isinstance(part, TemplateIds))
    options = {"model": resolve(given.model)[0], "texts": str(texts), "dtype": given.dtype,
               "begin": tokenizer.convert_ids_to_tokens(end[0])}  # fmt: skip
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in SYSTEMS}
    for _ in range(given.rounds):
        for name, system in SYSTEMS.items():
            script = HERE / "peers" / f"{system['peer']}_scoring.py"
            command = [python_of(system, given.environments), str(script), json.dumps(options)]
            done = subprocess.run(command, capture_output=True, text=True)
            found = [line.removeprefix("RESULT ") for line in done.stdout.splitlines() if line.startswith("RESULT ")]
            if not found:
                sys.exit(f"{name} gave no result:\n{done.stderr[-3000:]}")
            runs[name].append(json.loads(found[0]))
            print(f"{name:<8} {runs[name][-1]['seconds']:.1f} s", flush=True)
    text = table(runs, sum(n for _, n in chosen))
    told = f"{date.today()}, {machine()}\n`{' '.join(['python', 'experiments/throughput/scoring.py', *sys.argv[1:]])}`"
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "scoring.md").write_text(f"{told}\n\n{text}", "utf-8")
    print(text)


def table(runs: dict[str, list[dict[str, Any]]], n_tokens: int) -> str:
    """Medians of the rounds, ratios, and how far the numbers lie from this project's."""
    seconds = {name: statistics.median(run["seconds"] for run in of) for name, of in runs.items()}
    totals = {name: sum(of[0]["nlls"]) for name, of in runs.items()}
    lines = ["| | tokens/s | inscp is faster by | summed NLL against inscp's | peak, GiB |\n|---|---|---|---|---|"]
    for name, of in runs.items():
        apart = totals[name] / totals["inscp"] - 1
        peak = statistics.median(run["peak_kib"] for run in of) / 2**20
        lines.append(f"| {SYSTEMS[name]['title']} | {n_tokens / seconds[name]:,.0f} | "
                     f"{seconds[name] / seconds['inscp']:.2f} | {apart:+.1e} | {peak:.2f} |")  # fmt: skip
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
