"""Tracking keeps what DESIGN names, each thing once, and a training neither waits for it nor dies of it."""

import json
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from corpus import data_module, fit
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from mlflow_servers import Server, forgetful_server, silent_server, wait_until
from requests import HTTPError, Response

from inscp.__main__ import main
from inscp.callbacks.checkpoints import Checkpoints
from inscp.callbacks.throughput import Throughput
from inscp.errors import UserError
from inscp.tracking.environment import provenance_tags
from inscp.tracking.mlflow_run import _is_refusal
from inscp.tracking.pieces import Metrics, now
from inscp.tracking.tracked_run import TrackedRun, Tracking
from inscp.tracking.tracker import MLflowTracker

NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("server"))
    running.start()
    wait_until(running.is_up)
    yield running
    running.kill()


@pytest.fixture
def store(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/store.db"


def tracker_for(uri: str, **options: Any) -> MLflowTracker:
    return MLflowTracker(Tracking(uri, **options), "InsCP tiny und", provenance_tags())


@pytest.fixture
def fitted(tmp_path: Path, corpus: Path, tiny_model_folder: str) -> Callable[..., int]:
    """A training of some ten steps; returns how many."""

    def train(tracker: MLflowTracker, *callbacks: Callback, **options: Any) -> int:
        data = data_module(corpus, tiny_model_folder, validation={"held": str(corpus)}, batch_size=4)
        return max(fit(tmp_path, data, Throughput(), *callbacks, logger=tracker, **options).steps)

    return train


class After(Callback):
    """Does something behind some of the steps."""

    def __init__(self, actions: dict[int, Callable[[], object]]) -> None:
        self._actions = actions

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if action := self._actions.pop(trainer.global_step, None):
            action()


def run_in(uri: str, experiment: str = "inscp") -> Run:
    """The only run of the experiment."""
    client = MlflowClient(uri)
    [run] = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    return run


def steps_of(metric: str, run: Run, uri: str) -> list[int]:
    return [point.step for point in MlflowClient(uri).get_metric_history(run.info.run_id, metric)]


@pytest.fixture
def told(recwarn: pytest.WarningsRecorder) -> Callable[[], list[str]]:
    """What the user has been told about MLflow, repetitions too, which Python leaves out by default."""
    warnings.simplefilter("always")
    return lambda: [str(warning.message) for warning in recwarn if "MLflow" in str(warning.message)]


def test_a_run_has_the_named_metrics_params_tags_and_artifacts(
    tmp_path: Path, store: str, fitted: Callable[..., int]
) -> None:
    steps = fitted(tracker_for(store))
    run = run_in(store)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "InsCP tiny und"
    named = {
        *("train/loss", "train/lr", "train/grad_norm", "train/tokens", "train/tokens_per_second", "train/mfu"),
        *("memory/peak_gib", "memory/rank_0/loaded_gib", "memory/rank_0/peak_gib"),
        *("val/held/loss", "val/held/perplexity"),
    }
    assert set(run.data.metrics) == named
    assert steps_of("train/loss", run, store) == list(range(1, steps + 1))
    assert steps_of("val/held/loss", run, store) == [0, steps]
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
    artifacts = {item.path for item in MlflowClient(store).list_artifacts(run.info.run_id)}
    assert {"tagged_example.txt", "data_report.json"} <= artifacts
    assert run.inputs.dataset_inputs[0].dataset.digest == run.data.params["data_fingerprint"][:16]
    assert (tmp_path / "mlartifacts").is_dir()


def test_a_server_that_was_killed_in_mid_training_gets_everything_once(
    server: Server, fitted: Callable[..., int], told: Callable[[], list[str]]
) -> None:
    def kill() -> None:
        wait_until(lambda: tracker.run_id and steps_of("train/loss", run_in(server.uri), server.uri))
        server.kill()

    tracker = tracker_for(server.uri)
    steps = fitted(tracker, After({3: kill, 6: server.start}))
    down, back = told()
    assert "does not accept" in down
    assert "is back" in back
    assert tracker.is_sent
    run = run_in(server.uri)
    assert run.info.status == "FINISHED"
    for metric in ("train/loss", "train/tokens", "memory/peak_gib"):
        assert steps_of(metric, run, server.uri) == list(range(1, steps + 1))
    assert steps_of("val/held/loss", run, server.uri) == [0, steps]


def test_what_got_through_without_an_answer_is_kept_once(
    server: Server, tmp_path: Path, told: Callable[[], list[str]]
) -> None:
    with forgetful_server(server) as uri:
        tracker = tracker_for(uri, experiment="forgotten")
        tracker.log_hyperparams({"arm": "InsCP", "seed": 0})
        for step in range(3):
            tracker.log_at({"train/loss": 1.0 / (step + 1)}, step)
        tracker.log_table({"prompt": ["a", "b"], "ended": [True, False]}, "answers/before.json")
        tracker.finalize("success")
    assert "does not accept" in told()[0]
    run = run_in(server.uri, "forgotten")
    assert run.info.status == "FINISHED"
    assert run.data.params == {"arm": "InsCP", "seed": "0"}
    assert steps_of("train/loss", run, server.uri) == [0, 1, 2]
    table = MlflowClient(server.uri).download_artifacts(run.info.run_id, "answers/before.json", str(tmp_path))
    assert json.loads(Path(table).read_text()) == {"columns": ["prompt", "ended"], "data": [["a", True], ["b", False]]}
    assert json.loads(run.data.tags["mlflow.loggedArtifacts"]) == [{"path": "answers/before.json", "type": "table"}]


def test_a_silent_server_costs_a_training_nothing_and_track_sends_the_rest(
    tmp_path: Path,
    store: str,
    fitted: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    told: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "100")
    with silent_server() as uri:
        tracker = tracker_for(uri, patience=1)
        tracker.unsent_folder = tmp_path / "run"
        seconds = []
        for step in range(300):
            start = time.perf_counter()
            tracker.log_at({"probe": 0.5}, step)
            tracker.log_text("text" * 1000, "probe.txt")
            seconds.append(time.perf_counter() - start)
        assert statistics.median(seconds) < 0.005
        assert max(seconds) < 0.5
        start = time.monotonic()
        steps = fitted(tracker)
        assert time.monotonic() - start < 50  # one request alone would take 100 seconds
    assert not tracker.is_sent
    file = tmp_path / "run" / "mlflow_unsent.jsonl"
    assert told()[0].endswith(f"python -m inscp track {file}")
    kinds = [json.loads(line)["kind"] for line in file.read_text().splitlines()]
    assert (kinds[0], kinds[-1]) == ("Start", "End")
    assert main(["track", str(file), "--tracking_uri", NOWHERE]) == 1
    assert "is kept" in capsys.readouterr().err
    assert main(["track", str(file), "--tracking_uri", store]) == 0
    assert not file.exists()
    run = run_in(store)
    assert run.info.run_id in capsys.readouterr().out
    assert run.info.status == "FINISHED"
    assert steps_of("train/loss", run, store) == list(range(1, steps + 1))
    assert steps_of("probe", run, store) == list(range(300))
    assert {"arm", "data_fingerprint"} <= run.data.params.keys()


def test_a_server_that_cannot_be_reached_is_reported_once(
    tmp_path: Path, fitted: Callable[..., int], told: Callable[[], list[str]]
) -> None:
    tracker = tracker_for(NOWHERE, patience=3)
    tracker.unsent_folder = tmp_path
    assert fitted(tracker) > 2
    down, _ = told()
    assert "does not accept the tracking data ([Errno 111] Connection refused); training continues" in down


def test_a_continued_run_has_every_step_once_and_its_old_parameters(
    tmp_path: Path, store: str, fitted: Callable[..., int], told: Callable[[], list[str]]
) -> None:
    def die() -> None:
        raise RuntimeError("as if killed")

    def saving() -> Checkpoints:
        return Checkpoints(str(tmp_path / "kept"), every_n_steps=4)

    with pytest.raises(RuntimeError, match="as if killed"):
        fitted(tracker_for(store), saving(), After({7: die}))
    killed = run_in(store)
    assert killed.info.status == "FAILED"
    assert steps_of("train/loss", killed, store) == [1, 2, 3, 4, 5, 6]
    again = tracker_for(store, run_id=killed.info.run_id)
    again.log_hyperparams({"arm": "another"})
    running = After({6: lambda: wait_until(lambda: run_in(store).info.status == "RUNNING")})
    checkpoint = tmp_path / "kept" / "step-00000004"
    steps = fitted(again, saving(), running, resume=checkpoint)
    run = run_in(store)
    assert run.info.status == "FINISHED"
    assert run.data.params == killed.data.params
    assert told() == []
    assert steps_of("train/loss", run, store) == list(range(1, steps + 1))


def test_what_a_killed_process_had_not_sent_comes_with_the_checkpoint(store: str) -> None:
    killed = tracker_for(store)
    for step in range(1, 4):
        killed.log_at({"train/loss": 1.0 / step}, step)
    state = killed.state({"train/loss": 0.25}, 4)  # the thread gathers before it sends, or even starts the run
    assert len(state) == 5
    wait_until(lambda: killed.is_sent)  # some of it came through all the same
    resumed = MLflowTracker(Tracking(store), "the same", provenance_tags(), earlier=state)
    resumed.log_at({"train/loss": 0.2}, 5)
    resumed.finalize("success")
    assert steps_of("train/loss", run_in(store), store) == [1, 2, 3, 4, 5]


def test_a_process_that_is_not_the_first_sends_nothing_of_an_earlier_one(
    store: str, told: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = tracker_for(store)
    killed.log_at({"train/loss": 0.5}, 1)
    state = killed.state({"train/loss": 0.25}, 2)
    killed.finalize("interrupted")
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    other = MLflowTracker(Tracking(store), "the same", provenance_tags(), earlier=state)
    other.log_at({"train/loss": 0.2}, 3)
    other.finalize("success")
    time.sleep(1.5)  # a thread gathers for a second before it sends
    assert told() == []
    assert steps_of("train/loss", run_in(store), store) == [1]


def test_what_the_store_refuses_is_reported_and_costs_nothing_else(store: str, told: Callable[[], list[str]]) -> None:
    tracker = tracker_for(store)
    tracker.log_hyperparams({"arm": "InsCP", "bad*": 1, "long": "x" * 7000})
    tracker.log_hyperparams({"arm": "another", "worse*": 1})
    tracker.log_at({"fine": 1.0, "a//b": 2.0}, 1)
    tracker.log_at({"fine": 0.5, "val/中文 (a)/loss": 1.0}, 2)
    tracker.finalize("success")
    assert [line.split(",")[0] for line in told()] == ["MLflow rejected Param", "MLflow rejected Metrics"]
    run = run_in(store)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"arm": "InsCP", "long": "x" * 6000}
    assert run.data.metrics == {"fine": 0.5, "val/中文 _a_/loss": 1.0}
    assert steps_of("fine", run, store) == [1, 2]


def test_a_run_that_the_store_does_not_know_is_reported_and_kept(
    tmp_path: Path, store: str, capsys: pytest.CaptureFixture[str], told: Callable[[], list[str]]
) -> None:
    tracker = tracker_for(store, run_id="0" * 32)
    tracker.unsent_folder = tmp_path
    tracker.log_at({"train/loss": 1.0}, 1)
    tracker.finalize("killed")
    assert "MLflow rejected the run" in told()[0]
    assert main(["track", str(tmp_path / "mlflow_unsent.jsonl")]) == 1
    assert "rejected the run" in capsys.readouterr().err
    assert (tmp_path / "mlflow_unsent.jsonl").exists()


def cut_off_behind_a_step(store: str, folder: Path) -> MLflowTracker:
    """The tracker of a run that has sent its first step, and could not send the second, which lies in the folder."""
    first = tracker_for(store)
    first.log_at({"train/loss": 3.0}, 1)
    wait_until(lambda: first.is_sent)
    with silent_server() as uri:
        cut_off = tracker_for(uri, run_id=first.run_id, patience=0)
        cut_off.unsent_folder = folder
        cut_off.log_at({"train/loss": 2.0}, 2)
        with pytest.warns(UserWarning, match="python -m inscp track"):
            cut_off.finalize("failed")
    return first


def test_what_is_sent_late_does_not_undo_the_end_of_a_later_training(tmp_path: Path, store: str) -> None:
    first = cut_off_behind_a_step(store, tmp_path)
    later = tracker_for(store, run_id=first.run_id)
    later.log_at({"train/loss": 1.0}, 3)
    later.finalize("success")
    assert main(["track", str(tmp_path / "mlflow_unsent.jsonl"), "--tracking_uri", store]) == 0
    run = run_in(store)
    assert run.info.status == "FINISHED"
    assert sorted(steps_of("train/loss", run, store)) == [1, 2, 3]


def test_what_could_not_be_sent_to_one_store_is_sent_to_another(tmp_path: Path, store: str) -> None:
    cut_off_behind_a_step(store, tmp_path)
    other = f"sqlite:///{tmp_path / 'other.db'}"
    assert main(["track", str(tmp_path / "mlflow_unsent.jsonl"), "--tracking_uri", other]) == 0
    assert steps_of("train/loss", run_in(other), other) == [2]
    assert steps_of("train/loss", run_in(store), store) == [1]


def test_what_belongs_to_a_deleted_run_is_not_sent_to_a_new_one(
    tmp_path: Path, store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first = cut_off_behind_a_step(store, tmp_path)
    client = MlflowClient(store)
    client.set_terminated(first.run_id, "FINISHED", end_time=1)
    client.delete_run(first.run_id)
    assert main(["track", str(tmp_path / "mlflow_unsent.jsonl"), "--tracking_uri", store]) == 1
    assert "rejected the run" in capsys.readouterr().err
    assert (tmp_path / "mlflow_unsent.jsonl").exists()


def test_what_is_measured_again_is_what_the_run_shows_and_what_is_only_sent_again_is_there_once(store: str) -> None:
    first = tracker_for(store)
    first.log_at({"eval/x": 0.5}, 10, anew=True)
    wait_until(lambda: first.is_sent)
    measured = Metrics({"eval/x": 0.4}, 10, now() + 1, anew=True)
    for piece in (measured, measured, Metrics({"eval/x": 0.6}, 10, now() + 2)):
        later = tracker_for(store, run_id=first.run_id)
        later._outbox.put(piece)
        later.finalize("success")
    run = run_in(store)
    assert run.data.metrics["eval/x"] == 0.4
    assert steps_of("eval/x", run, store) == [10, 10]


def test_an_addition_leaves_the_status_and_times_of_its_run_and_starts_a_lost_one_now(
    tmp_path: Path, store: str
) -> None:
    def add(uri: str, run_id: str | None) -> Run:
        adding = TrackedRun(Tracking(uri, run_id=run_id), "measured", {}, is_addition=True)
        adding.log_at({"eval/x": 0.5}, 1)
        adding.finalize("success")
        return run_in(uri)

    tracker = tracker_for(store)
    tracker.log_at({"train/loss": 3.0}, 1)
    tracker.finalize("failed")
    before = run_in(store)
    after = add(store, before.info.run_id)
    assert after.data.metrics == {"train/loss": 3.0, "eval/x": 0.5}
    for name in ("status", "start_time", "end_time"):
        assert getattr(after.info, name) == getattr(before.info, name)
    assert add(f"sqlite:///{tmp_path}/anew.db", None).info.start_time >= before.info.end_time


@pytest.mark.parametrize("status", [401, 403, 404, 413])
def test_a_file_that_is_refused_for_now_is_kept_and_one_that_is_at_fault_is_not(status: int) -> None:
    response = Response()
    response.status_code = status
    assert _is_refusal(HTTPError(response=response)) == (status == 413)


@pytest.mark.parametrize(("said", "kept"), [("success", "FINISHED"), ("failed", "FAILED"), ("stopped", "KILLED")])
def test_the_run_ends_as_the_training_did(store: str, said: str, kept: str) -> None:
    tracker = tracker_for(store)
    tracker.log_at({"train/loss": 1.0}, 1)
    tracker.finalize(said)
    assert run_in(store).info.status == kept


def test_a_store_that_cannot_be_opened_is_a_wrong_input() -> None:
    with pytest.raises(UserError, match=r"mlflow\.tracking_uri: the store sqlite:////dev/null/store\.db cannot"):
        tracker_for("sqlite:////dev/null/store.db")


@pytest.mark.parametrize("content", [None, "", "[]", '{"kind": "Text"}', '{"kind": "End", "status": "", "time": 1}'])
def test_track_takes_only_the_file_of_a_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None
) -> None:
    file = tmp_path / "some.jsonl"
    if content is not None:
        file.write_text(content)
    assert main(["track", str(file)]) == 2
    assert "Give the mlflow_unsent.jsonl of a run" in capsys.readouterr().err


def test_track_leaves_the_file_by_which_an_evaluation_finds_the_run(
    tmp_path: Path, store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = tracker_for(store)
    tracker.note_run(tmp_path)
    assert main(["track", str(tmp_path / "mlflow_run.jsonl")]) == 2
    assert "it contains nothing to send" in capsys.readouterr().err
    assert (tmp_path / "mlflow_run.jsonl").exists()


def test_a_run_has_the_name_and_tags_that_the_configuration_gives(store: str) -> None:
    tracker = tracker_for(store, name="InsCP, seed 1", tags={"study": "paper"})
    tracker.log_at({"x": 1.0}, 1)
    tracker.finalize("success")
    run = run_in(store)
    assert run.info.run_name == "InsCP, seed 1"
    assert run.data.tags.items() >= ({"study": "paper"} | provenance_tags()).items()


def test_what_a_driver_of_an_object_store_raises_may_pass() -> None:
    """botocore's errors, for one, are nobody else's; what Python itself raises is at fault for good."""
    passing = type("EndpointConnectionError", (Exception,), {"__module__": "botocore.exceptions"})
    assert not _is_refusal(passing("could not connect"))
    assert not _is_refusal(ConnectionResetError())
    assert _is_refusal(PermissionError("a folder"))
    assert _is_refusal(ModuleNotFoundError("boto3"))


def test_a_new_file_is_made_by_one_of_the_processes_that_open_it_at_once(tmp_path: Path) -> None:
    code = f"""
import os
import mlflow.tracking
from inscp.tracking.mlflow_run import MLflowRun
from inscp.tracking.pieces import Start

for _ in range(3):
    if not os.fork():
        MLflowRun(Start("sqlite:///{tmp_path}/new.db", "", "", {{}}, "", 0, None)).connect()
        os._exit(0)
assert [os.wait()[1] for _ in range(3)] == [0, 0, 0]
"""
    ended = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    assert ended.returncode == 0, ended.stderr
