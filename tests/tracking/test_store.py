"""Which MLflow store is meant, and that no password gets into a file."""

import pytest

from inscp.errors import UserError
from inscp.tracking.store import store_uri
from inscp.tracking.tracked_run import Tracking


def test_what_is_given_comes_before_the_environment_and_a_file_here_is_the_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert store_uri(None) == "sqlite:///mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert Tracking().uri == "http://server:5000"
    assert Tracking("sqlite:///mine.db").uri == "sqlite:///mine.db"


@pytest.mark.parametrize("uri", ["http://me:secret@server:5000", "postgresql://me:secret@server/mlflow"])
def test_a_password_in_the_address_is_refused_and_not_repeated(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(UserError, match="MLFLOW_TRACKING_PASSWORD") as told:
        store_uri(None)
    assert "secret" not in str(told.value)
    assert store_uri("http://me@server:5000") == "http://me@server:5000"
