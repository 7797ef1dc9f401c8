"""The curves of a training, as its MLflow run has kept them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from inscp.tracking.mlflow_run import find_run, store_client
from inscp.tracking.pieces import read_run
from inscp.tracking.store import file_of
from inscp.tracking.tracker import RUN_FILE

_SHOWN = ("train/loss", "val/", "alignment/")
_TOKENS = "train/tokens"
Curve = Sequence[tuple[float, float]]


def curves(model: Path) -> Mapping[str, Curve]:
    """Measure -> (tokens, value) in order, of the training that made a model; empty where no store has it.

    Args:
        model: the exported folder.
    """
    from mlflow.exceptions import MlflowException

    file = model.parent / RUN_FILE
    if not file.is_file():
        return {}
    start, _ = read_run(file)
    store = file_of(start.tracking_uri)
    if store is not None and not store.is_file():  # opened, it would be made anew
        return {}
    try:
        client = store_client(start.tracking_uri)
        experiment = client.get_experiment_by_name(start.experiment)
        run = find_run(client, experiment.experiment_id, start.key) if experiment else None
        if run is None:
            return {}
        tokens = {0: 0.0} | {p.step: p.value for p in client.get_metric_history(run.info.run_id, _TOKENS)}
        names = [name for name in run.data.metrics if name.startswith(_SHOWN) and not name.endswith("/perplexity")]
        return {
            name: [(tokens[p.step], p.value) for p in sorted(client.get_metric_history(run.info.run_id, name),
                                                             key=lambda p: p.step) if p.step in tokens]
            for name in sorted(names)
        }  # fmt: skip
    except MlflowException:  # the store is gone, or a server is down: the report does without
        return {}
