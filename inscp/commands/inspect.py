"""`inspect`: show exactly what the model will see, as text or as JSON lines."""

import json
import sys
from collections.abc import Iterator
from itertools import groupby, islice
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser
from transformers import PreTrainedTokenizerBase

from inscp.commands.fit import InsCPCLI
from inscp.commands.quiet import quiet
from inscp.data.pipeline import Pipeline
from inscp.errors import UserError
from inscp.progress import skipped_lines
from inscp.records import IGNORED


def run(command: str, arguments: list[str]) -> None:
    """`python -m inscp inspect --config … [--n 3] [--json]`"""
    quiet()
    cli = InspectCLI.unrun(arguments)
    if cli.config["n"] < 0:
        raise UserError("n", f"must not be negative, but is {cli.config['n']}", "Give 0 or more.")
    for pipeline in cli.datamodule.pipelines():
        for shown in islice(documents(pipeline), cli.config["n"]):
            print(json.dumps(shown, ensure_ascii=False) if cli.config["json"] else as_text(shown, pipeline.tokenizer))
        for source, read in zip(pipeline.sources, pipeline.reads, strict=True):
            for line in skipped_lines(source.name, read.skipped, read.examples):
                print(f"so far {line}", file=sys.stderr)


class DataCLI(InsCPCLI):
    """A training configuration of which only the data is instantiated."""

    def instantiate_classes(self) -> None:
        self.datamodule = self.parser.instantiate_classes(self.config)["data"]


class InspectCLI(DataCLI):
    command_name = "inspect"

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_argument("--n", type=int, default=3, help="number of documents to show, and as many replayed ones.")
        parser.add_argument("--json", action="store_true", help="print one JSON object per line.")


def documents(pipeline: Pipeline) -> Iterator[dict[str, Any]]:
    """For each token sequence of the training data, in order: `source`, `text` (as read), `rendered` (what the ids
    decode to), `input_ids`, `labels` (-100 for no loss) and `split` (part k of n)."""
    for tagged, sequence in pipeline.documents():
        yield {
            "source": sequence.source,
            "text": tagged.text,
            "rendered": pipeline.tokenizer.decode(sequence.input_ids),
            "input_ids": sequence.input_ids.tolist(),
            "labels": sequence.labels.tolist(),
            "split": [sequence.part, sequence.parts],
        }


def as_text(shown: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> str:
    """A document as text; tokens without loss are in ⟦ ⟧."""
    part, parts = shown["split"]
    pairs = zip(shown["input_ids"], shown["labels"], strict=True)
    text = ""
    for has_loss, group in groupby(pairs, key=lambda pair: pair[1] != IGNORED):
        piece = str(tokenizer.decode([token for token, _ in group]))
        text += piece if has_loss else f"⟦{piece}⟧"
    n_targets = sum(label != IGNORED for label in shown["labels"])
    head = f"{shown['source']}  {len(shown['input_ids'])} tokens, {n_targets} with loss"
    return f"── {head}{f', part {part} of {parts}' if parts > 1 else ''}\n{text}\n"
