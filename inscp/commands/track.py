"""`track`: upload what a training run could not send to MLflow."""

from dataclasses import replace
from pathlib import Path

from inscp.commands.parser import call
from inscp.errors import RunError, UserError
from inscp.tracking.mlflow_run import MLflowRun, reason
from inscp.tracking.pieces import batches, read_run


def run(command: str, arguments: list[str]) -> None:
    """`python -m inscp track FILE [--tracking_uri URI]`"""
    call(command, track, arguments, as_positional=True)


def track(file: str, tracking_uri: str | None = None) -> None:
    """Upload the tracking data that a run could not send to MLflow, and delete the file.

    Args:
        file: mlflow_unsent.jsonl of the run.
        tracking_uri: MLflow store to send to, if not the one of the run, or if its URL has changed.
    """
    path = Path(file)
    start, rest = read_run(path)
    if not rest:  # such as the mlflow_run.jsonl next to it, by which evaluate finds the run
        raise UserError(file, "it contains nothing to send", "Give the mlflow_unsent.jsonl of a run.")
    start = replace(start, tracking_uri=tracking_uri or start.tracking_uri)
    destination = MLflowRun(start)
    destination.connect()
    try:
        try:
            destination.open()
        except RunError as error:
            if tracking_uri is None or getattr(error.__cause__, "error_code", "") != "RESOURCE_DOES_NOT_EXIST":
                raise
            destination.start = replace(start, run_id=None)  # another store: the run is created there
        for batch in batches(rest):
            destination.send(batch)
    except RunError:
        raise
    except Exception as error:  # whatever the store, the network or the server raises
        what = f"{start.tracking_uri} cannot be reached ({reason(error)}). {file} is kept; try again later."
        raise RunError(what) from error
    path.unlink()
    print(f"{start.tracking_uri} (experiment {start.experiment}, run {destination.run_id})")
