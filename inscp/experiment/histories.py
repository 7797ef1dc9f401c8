"""The curves of a training run, read from MLflow."""

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
    """The history of one training run.

    Attributes:
        curves: measure -> (tokens, value) in order.
        tokenizer: digest of the model's tokenizer: per-token losses are comparable if it is the same.
    """

    curves: Mapping[str, Curve]
    tokenizer: str = ""

    @classmethod
    def of(cls, model: Path) -> "History":
        """The history of the run that trained a model, from its exported folder."""
        file = model / "tokenizer.json"
        tokenizer = json.loads(file.read_text("utf-8")) if file.is_file() else {}
        tokenizer |= {"padding": None, "truncation": None}  # which only record its last call
        return cls(curves(model), hashlib.blake2b(json.dumps(tokenizer).encode()).hexdigest())


def side_by_side(histories: Mapping[str, History]) -> tuple[dict[str, dict[str, Curve]], list[str]]:
    """Curves that can be drawn together, and the rows whose losses are not among them.

    Args:
        histories: row -> its history.

    Returns:
        measure -> row -> its curve, and the rows with another tokenizer than most rows, whose per-token losses are not
        comparable.
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
    """Measure -> (tokens, value) in order, for the run that trained a model; empty if no store has it.

    Args:
        model: the exported folder.
    """
    file = model.parent / RUN_FILE
    if not file.is_file():
        return {}
    start, _ = read_run(file)
    store = file_of(start.tracking_uri)
    if store is not None and not store.is_file():  # opening it would create it
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
    except MlflowException:  # the store is gone, or a server is down: the report omits the curves
        return {}
