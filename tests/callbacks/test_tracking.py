"""Tracking keeps what DESIGN names, and a training never dies of it."""

from pathlib import Path

import pytest
from corpus import data_module, module, trainer, write_corpus
from mlflow.tracking import MlflowClient

from inscp.callbacks.provenance import Provenance, provenance_tags
from inscp.callbacks.throughput import Throughput
from inscp.callbacks.tracking import MLflowTracker, Tracking
from inscp.errors import UserError


def tracker_for(uri: str) -> MLflowTracker:
    return MLflowTracker(Tracking(uri), "InsCP tiny und", provenance_tags())


def fit(tmp_path: Path, model: str, tracker: MLflowTracker) -> int:
    corpus = write_corpus(tmp_path)
    data = data_module(corpus, model, validation={"held": str(corpus)}, batch_size=4)
    run = trainer(tmp_path, logger=tracker, callbacks=[Provenance(tmp_path), Throughput()])
    run.fit(module(model), datamodule=data)
    return run.global_step


def test_a_run_has_the_named_metrics_params_tags_and_artifacts(tmp_path: Path, tiny_model_folder: str) -> None:
    uri = f"sqlite:///{tmp_path}/store.db"
    tracker = tracker_for(uri)
    steps = fit(tmp_path, tiny_model_folder, tracker)
    client = MlflowClient(uri)
    [run] = client.search_runs([client.get_experiment_by_name("inscp").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "InsCP tiny und"
    named = {
        *("train/loss", "train/lr", "train/grad_norm", "train/tokens", "train/tokens_per_second", "train/mfu"),
        *("memory/peak_gib", "val/held/loss", "val/held/perplexity"),
    }
    assert set(run.data.metrics) == named
    assert len(client.get_metric_history(run.info.run_id, "train/loss")) == steps
    assert [point.step for point in client.get_metric_history(run.info.run_id, "val/held/loss")] == [0, steps]
    expected = {"arm": "InsCP", "model": "tiny-llama", "language": "und", "precision": "32-true", "world_size": "1"}
    assert expected.items() <= run.data.params.items()
    assert {
        "data_fingerprint",
        "data_padding",
        "data_split_documents",
        "token_budget",
        "learning_rate",
    } <= run.data.params.keys()
    assert {"version.torch", "version.inscp"} <= run.data.tags.keys()
    artifacts = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert {"tagged_example.txt", "data_report.json"} <= artifacts
    assert run.inputs.dataset_inputs[0].dataset.digest == run.data.params["data_fingerprint"][:16]
    assert (tmp_path / "mlartifacts").is_dir()


def test_a_server_that_cannot_be_reached_is_told_once_and_the_training_ends_well(
    tmp_path: Path, tiny_model_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    tracker = tracker_for("http://127.0.0.1:9")
    with pytest.warns(UserWarning, match="tracking failed, the training goes on") as told:
        assert fit(tmp_path, tiny_model_folder, tracker) > 2
    assert sum("tracking failed" in str(warning.message) for warning in told) == 1
    assert "failed" in tracker.address


def test_a_store_that_cannot_be_opened_is_a_wrong_input() -> None:
    with pytest.raises(UserError, match=r"mlflow\.tracking_uri: the store sqlite:////dev/null/store\.db cannot"):
        tracker_for("sqlite:////dev/null/store.db")
