"""From records to packed rows: this project against `datasets.map` with `apply_chat_template`, and the tokenizer alone.

    python experiments/throughput/data.py my.jsonl                  # instruction, context, response
    python experiments/throughput/data.py my.jsonl --megabytes 10 100 500     # memory and time by size

Every measurement is a process of its own with an empty cache.
"""

import argparse
import os
import resource
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
        start = time.perf_counter()
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

    start = time.perf_counter()
    made = records.map(tokenise, remove_columns=records.column_names)
    told("datasets.map, apply_chat_template a record", start, sum(map(len, made["input_ids"])))


def alone(path: str, tokenizer: Any) -> None:
    """The tokenizer on the same texts, a thousand at a time, and nothing else: the floor."""
    from inscp.data.sources import ReadReport, Source, read_records

    texts = [turn.text for record in read_records(Source(path), "error", ReadReport()) for turn in record.turns]
    start, n = time.perf_counter(), 0
    for begin in range(0, len(texts), 1024):
        n += sum(map(len, tokenizer(texts[begin : begin + 1024], add_special_tokens=False)["input_ids"]))
    told("the tokenizer alone", start, n)


def told(name: str, start: float, tokens: int) -> None:
    """One line of the table."""
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"| {name} | {seconds:.2f} s | {tokens / seconds:,.0f} | {peak:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", help="JSONL with instruction, context and response")
    parser.add_argument("--model", default=QUICKSTART)
    parser.add_argument("--megabytes", type=int, nargs="*", help="the file over again, up to these sizes")
    parser.add_argument("--system", choices=("ours", "mapped", "alone"), help="only this one, in this process")
    given = parser.parse_args()
    if given.system:
        {"ours": ours, "mapped": mapped, "alone": alone}[given.system](given.path, load_tokenizer(given.model))
        return
    print(machine(), "\n\n| | time | tokens/s | peak memory, GiB |\n|---|---|---|---|", flush=True)
    content, model = Path(given.path).read_bytes(), resolve(given.model)[0]  # before the cache is an empty one
    with tempfile.TemporaryDirectory() as folder:
        sizes = given.megabytes or [None]
        for size in sizes:
            path = Path(folder) / "data.jsonl"
            with path.open("wb") as file:
                while size is not None and file.tell() < size * 1e6:
                    file.write(content)
                if size is None:
                    file.write(content)
            if size is not None:
                print(f"| **{size} MB** | | | |")
            for system in ("ours",) if given.megabytes else ("alone", "ours", "mapped"):
                cache = {"INSCP_CACHE": f"{folder}/cache", "HF_DATASETS_CACHE": f"{folder}/hf"}
                command = [sys.executable, __file__, str(path), "--model", model, "--system", system]
                subprocess.run(command, env=os.environ | cache, check=True)


if __name__ == "__main__":
    main()
