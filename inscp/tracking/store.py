"""The URI of the MLflow store."""

import os
from pathlib import Path
from urllib.parse import urlsplit

from inscp.errors import UserError

_FILE = "sqlite:///"


def store_uri(given: str | None) -> str:
    """The given store, else that of MLFLOW_TRACKING_URI, else `mlflow.db` in the current folder.

    Raises:
        UserError: it contains a password, which would be written to every file that records where a run is.
    """
    uri = given or os.environ.get("MLFLOW_TRACKING_URI") or f"{_FILE}mlflow.db"
    if urlsplit(uri).password:
        fix = "For a server use MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, for a database its own file."
        raise UserError("mlflow.tracking_uri", "it contains a password, which would be stored with every run", fix)
    return uri


def file_of(uri: str) -> Path | None:
    """The file of an SQLite store; None for a server."""
    path = uri.removeprefix(_FILE)
    return None if path == uri else Path(path).resolve()


def absolute(uri: str) -> str:
    """The store's URI, valid from any folder."""
    file = file_of(uri)
    return uri if file is None else f"{_FILE}{file}"
