"""From records to packed rows: this project against `datasets.map` with `apply_chat_template`, and the tokenizer alone.

    python experiments/throughput/data.py my.jsonl                  # instruction, context, response
    python experiments/throughput/data.py my.jsonl --megabytes 10 100 500     # memory and time by size

Every measurement is a process of its own with an empty cache. Processor time tells more than time where others use the
machine too.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import QUICKSTART, machine

from inscp.pretrained import load_tokenizer, resolve


def ours(path: str, tokenizer: Any) -> None:
    """Rows through the pipeline; with a second start from the cache."""
    from inscp.data.pipeline import Pipeline, as_sources
    from inscp.data.tagging import InsCPTagger

    for name in ("inscp, records to packed rows", "inscp, from the cache"):
        start = clocks()
        rows = Pipeline(as_sources(path), tokenizer, InsCPTagger(), 1024).rows()
        told(name, start, rows.report.tokens)


def mapped(path: str, tokenizer: Any) -> None:
    """What most scripts do: one template call a record, no packing."""
    import datasets

    records = datasets.load_dataset("json", data_files=path, split="train")

    def tokenise(record: dict[str, str]) -> dict[str, list[int]]:
        ids: list[int] = []
        for text in (f"{record['instruction']}\n\n{record['context']}", record["response"]):
            turns = [{"role": "user", "content": ""}, {"role": "assistant", "content": text}]
            ids += tokenizer.apply_chat_template(turns, return_dict=False)
        return {"input_ids": ids}

    start = clocks()
    made = records.map(tokenise, remove_columns=records.column_names)
    told("datasets.map, apply_chat_template a record", start, sum(map(len, made["input_ids"])))


def alone(path: str, tokenizer: Any) -> None:
    """The tokenizer on the same texts, a thousand at a time, and nothing else: the floor."""
    from inscp.data.sources import ReadReport, Source, read_records

    texts = [turn.text for record in read_records(Source(path), "error", ReadReport()) for turn in record.turns]
    start, n = clocks(), 0
    for begin in range(0, len(texts), 1024):
        n += sum(map(len, tokenizer(texts[begin : begin + 1024], add_special_tokens=False)["input_ids"]))
    told("the tokenizer alone", start, n)


def told(name: str, start: tuple[float, float, float], tokens: int) -> None:
    """What was measured since `start`, as one line of JSON."""
    seconds, cpu, own = (now - before for now, before in zip(clocks(), start, strict=True))
    # Not getrusage: its peak is at least the parent's.
    peak = int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 2**20  # type: ignore[index]
    read = {"name": name, "seconds": seconds, "cpu": cpu, "own": own, "tokens": tokens, "peak": peak}
    print(json.dumps(read), flush=True)


def clocks() -> tuple[float, float, float]:
    """Of the wall, and the processors' time that this process and those of it have taken, and this one alone."""
    return time.perf_counter(), sum(os.times()[:4]), time.process_time()


def measured(system: str, path: Path, model: str, folder: str) -> list[dict[str, Any]]:
    """One system in a process of its own, with an empty cache."""
    shutil.rmtree(f"{folder}/cache", ignore_errors=True)
    shutil.rmtree(f"{folder}/hf", ignore_errors=True)
    cache = {"INSCP_CACHE": f"{folder}/cache", "HF_DATASETS_CACHE": f"{folder}/hf"}
    command = [sys.executable, __file__, str(path), "--model", model, "--system", system]
    done = subprocess.run(command, env=os.environ | cache, check=True, stdout=subprocess.PIPE, text=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def line(one: dict[str, Any], size: str = "") -> str:
    """A line of the table."""
    name, rate = f"{size}{one['name']}", one["tokens"] / one["seconds"]
    clocks = " | ".join(f"{one[clock]:.2f} s" for clock in ("seconds", "cpu", "own"))
    return f"| {name} | {clocks} | {rate:,.0f} | {one['peak']:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", help="JSONL with instruction, context and response")
    parser.add_argument("--model", default=QUICKSTART)
    parser.add_argument("--rounds", type=int, default=3, help="each system once a round; the best of each counts")
    parser.add_argument("--megabytes", type=int, nargs="*", help="the file over again, up to these sizes")
    parser.add_argument("--system", choices=tuple(SYSTEMS), help="only this one, in this process")
    given = parser.parse_args()
    if given.system:
        SYSTEMS[given.system](given.path, load_tokenizer(given.model))
        return
    print(
        machine(),
        "\n\n| | time | processor time | of one process | tokens/s | its peak memory, GiB |\n|---|---|---|---|---|---|",
        flush=True,
    )
    content, model = Path(given.path).read_bytes(), resolve(given.model)[0]  # before the cache is an empty one
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.jsonl"
        for size in given.megabytes or []:
            with path.open("wb") as file:
                while file.tell() < size * 1e6:
                    file.write(content[: int(size * 1e6) - file.tell()].rpartition(b"\n")[0] + b"\n")
            for one in measured("ours", path, model, folder):
                print(line(one, f"{size} MB: "), flush=True)
        if given.megabytes:
            return
        path.write_bytes(content)
        rounds = [measured(system, path, model, folder) for _ in range(given.rounds) for system in SYSTEMS]
        names = dict.fromkeys(one["name"] for lines in rounds for one in lines)
        for name in names:
            readings = [one for lines in rounds for one in lines if one["name"] == name]
            best = min(readings, key=lambda one: one["seconds"])
            least = {clock: min(one[clock] for one in readings) for clock in ("cpu", "own")}
            print(line(best | least), flush=True)


SYSTEMS = {"alone": alone, "ours": ours, "mapped": mapped}

if __name__ == "__main__":
    main()
