"""`inspect`: exactly what the model will see, as text or as JSON lines."""

import json
from itertools import islice
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser

from inscp.commands.fit import InsCPCLI, quiet
from inscp.data.datamodule import InsCPDataModule
from inscp.records import IGNORED


def run(command: str, arguments: list[str]) -> None:
    """`python -m inscp inspect --config … [--n 3] [--json]`"""
    quiet()
    cli = InspectCLI(run=False)
    for shown in islice(documents(cli.datamodule), cli.config["n"]):
        print(json.dumps(shown, ensure_ascii=False) if cli.config["json"] else as_text(shown, cli.datamodule))


class InspectCLI(InsCPCLI):
    """The configuration of a training, of which only the data is made."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_argument("--n", type=int, default=3, help="How many documents to show.")
        parser.add_argument("--json", action="store_true", help="One JSON object a line.")

    def instantiate_classes(self) -> None:
        arguments = self.config["data"].as_dict()
        self.datamodule = self.parser.instantiate_classes(self.config)["data"] if arguments else None


def documents(data: InsCPDataModule) -> Any:
    """For each token sequence of the training data, in order: `source`, `text` (as read), `rendered` (what the ids
    decode to), `input_ids`, `labels` (-100 where no loss) and `split` (part k of n)."""
    pipeline = data.pipeline()
    for tagged in pipeline.tagged():
        for sequence in pipeline.sequences(iter([tagged])):
            yield {
                "source": sequence.source,
                "text": tagged.text,
                "rendered": pipeline.tokenizer.decode(sequence.input_ids),
                "input_ids": sequence.input_ids.tolist(),
                "labels": sequence.labels.tolist(),
                "split": [sequence.part, sequence.parts],
            }


def as_text(shown: dict[str, Any], data: InsCPDataModule) -> str:
    """A document for people: what is not trained on stands in grey brackets."""
    part, parts = shown["split"]
    n_targets = sum(label != IGNORED for label in shown["labels"])
    head = f"{shown['source']}  {len(shown['input_ids'])} tokens, {n_targets} with loss"
    return f"── {head}{f', part {part} of {parts}' if parts > 1 else ''}\n{shown['rendered']}\n"
