"""The curves of a training, as its MLflow run has kept them."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from inscp.tracking.mlflow_run import find_run, store_client
from inscp.tracking.pieces import read_run
from inscp.tracking.store import file_of
from inscp.tracking.tracked_run import RUN_FILE

_SHOWN = ("train/loss", "val/", "alignment/")
_TOKENS = "train/tokens"
Curve = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class History:
    """One training.

    Attributes:
        curves: measure -> (tokens, value) in order.
        tokenizer: a digest of the model's own: losses a token are comparable where it is the same.
    """

    curves: Mapping[str, Curve]
    tokenizer: str = ""

    @classmethod
    def of(cls, model: Path) -> "History":
        """Of the training that made a model, by its exported folder."""
        file = model / "tokenizer.json"
        tokenizer = json.loads(file.read_text("utf-8")) if file.is_file() else {}
        tokenizer |= {"padding": None, "truncation": None}  # which is how it was called last
        return cls(curves(model), hashlib.blake2b(json.dumps(tokenizer).encode()).hexdigest())


def side_by_side(histories: Mapping[str, History]) -> tuple[dict[str, dict[str, Curve]], list[str]]:
    """Curves that can be drawn together, and the rows whose losses are not among them.

    Args:
        histories: row -> its training.

    Returns:
        measure -> row -> its curve, and the rows of another tokenizer than most rows, whose tokens are other pieces of
        text.
    """
    tokenizers = [of.tokenizer for of in histories.values()]
    most = max(tokenizers, key=tokenizers.count, default="")
    others = [row for row, of in histories.items() if of.tokenizer != most]
    found: dict[str, dict[str, Curve]] = {}
    for row, of in histories.items():
        for measure, curve in of.curves.items():
            if row not in others or not measure.endswith("/loss"):
                found.setdefault(measure, {})[row] = curve
    return found, others


def curves(model: Path) -> Mapping[str, Curve]:
    """Measure -> (tokens, value) in order, of the training that made a model; empty where no store has it.

    Args:
        model: the exported folder.
    """
    file = model.parent / RUN_FILE
    if not file.is_file():
        return {}
    start, _ = read_run(file)
    store = file_of(start.tracking_uri)
    if store is not None and not store.is_file():  # opened, it would be made anew
        return {}
    from mlflow.exceptions import MlflowException

    try:
        client = store_client(start.tracking_uri)
        experiment = client.get_experiment_by_name(start.experiment)
        run = find_run(client, experiment.experiment_id, start.key) if experiment else None
        if run is None:
            return {}
        tokens = {0: 0.0} | {p.step: p.value for p in client.get_metric_history(run.info.run_id, _TOKENS)}
        names = [name for name in run.data.metrics if name.startswith(_SHOWN) and not name.endswith("/perplexity")]
        found = {}
        for name in sorted(names):
            points = sorted(client.get_metric_history(run.info.run_id, name), key=lambda p: p.step)
            found[name] = [(tokens[p.step], p.value) for p in points if p.step in tokens]
        return found
    except MlflowException:  # the store is gone, or a server is down: the report does without
        return {}
