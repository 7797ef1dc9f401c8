"""What a command line and its files may hold: values as they are, whose files nobody reads, and no `null` for them."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from inscp.__main__ import main
from inscp.callbacks.checkpoints import Checkpoints
from inscp.commands.fit import TrainingParser
from inscp.commands.parser import Parser, call
from inscp.commands.parser_errors import config_files
from inscp.data.datamodule import InsCPDataModule
from inscp.data.pipeline import Sources
from inscp.errors import UserError


@pytest.fixture
def unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file whose text nobody may ask for."""
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "The river runs."}\n', "utf-8")
    plain = open

    def guarded(file: object, *args: object, **kwargs: object) -> object:
        assert str(file) != str(path), "the data was opened"
        return plain(file, *args, **kwargs)  # type: ignore[call-overload]

    monkeypatch.setattr("builtins.open", guarded)
    monkeypatch.setattr("io.open", guarded)
    return str(path)


def read(data: Sources) -> None:
    """What a command takes."""


def test_a_command_s_data_is_not_read_as_a_configuration(unread: str) -> None:
    parser = Parser()
    parser.add_function_arguments(read)
    assert parser.parse_args([f"--data={unread}"]).data == unread


def test_what_a_source_cannot_be_is_reported_in_the_source_s_own_words() -> None:
    with pytest.raises(UserError, match=r"limit of x\.jsonl: must be at least 1, not 0 records\. Give 1 or more\."):
        call("read", read, ["--data", "{path: x.jsonl, limit: 0}"])


@pytest.mark.parametrize("before", ["InsCPTagger", "{class_path: InsCPTagger, init_args: {loss: all, system: none}}"])
def test_another_class_has_none_of_the_old_one_s_arguments(before: str) -> None:
    """`InsCPTagger` learns all tokens and `ConversationTagger` the response, by an argument of the same name."""
    parser = TrainingParser()
    parser.add_lightning_class_args(InsCPDataModule, "data")
    given = ["--data.pretrained=x", f"--data.tagger={before}", "--data.tagger=ConversationTagger"]
    for arguments in (given, [given[0], given[2]]):
        tagger = parser.parse_args(arguments).data.tagger
        assert (tagger.init_args.loss, tagger.init_args.system) == ("response", "template")
    assert parser.parse_args([*given, "--data.tagger.loss=all"]).data.tagger.init_args.loss == "all"


def test_a_key_without_a_value_is_reported() -> None:
    with pytest.raises(UserError, match=r"data: it has no value\. Give one, as --data …\. See python -m inscp read"):
        call("read", read, ["--data"])
    with pytest.raises(UserError, match="config: it has no value"):
        call("read", read, ["--config"])


def test_a_training_s_data_is_not_read_as_a_configuration(unread: str) -> None:
    parser = TrainingParser()
    parser.add_lightning_class_args(InsCPDataModule, "data")
    given = parser.parse_args([f"--data.train={unread}", "--data.pretrained=x", "--data.language=fi"])
    assert given.data.train == unread


@pytest.mark.parametrize(("key", "may_be"), [("keep_last", False), ("every_n_steps", True), ("dirpath", True)])
def test_null_is_refused_where_a_value_is_needed(key: str, may_be: bool) -> None:
    parser = TrainingParser()
    parser.add_lightning_class_args(Checkpoints, "checkpoint")
    given = {"checkpoint": {key: None}}
    if may_be:
        assert parser.parse_object(given).checkpoint[key] is None
        return
    with pytest.raises(UserError, match=f"checkpoint.{key}: it has no value"):
        parser.parse_object(given)


@pytest.fixture
def complaint_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], str]:
    """What `evaluate` says of these tasks of a file `tasks.yaml`, which are wrong."""

    def run(tasks: str) -> str:
        monkeypatch.chdir(tmp_path)
        Path("tasks.yaml").write_text(f"tasks: {tasks}\n", "utf-8")
        assert main(["evaluate", "--model", "org/x", "--config", "tasks.yaml"]) == 2
        return capsys.readouterr().err

    return run


@pytest.mark.parametrize(("entry", "told"), [
    ("{class_path: LanguageAlignment, init_args: {languages: [en], max_prompts: 3}}",
     ".init_args.max_prompts in tasks.yaml: no such key. Did you mean limit?"),
    ("{class_path: LanguageAlignment, init_args: {languages: [en], wibble: 3}}",
     ".init_args.wibble in tasks.yaml: no such key. Choose from: languages, prompts, limit, max_new_tokens, "
     "lid_model."),
    ("{class_path: LanguageAlignment, init_args: {languages: [en]}, limit: 3}",
     ".limit in tasks.yaml: no such key. Give it under init_args: {class_path: …, init_args: {…}}."),
    ("{init_args: {languages: [en]}}",
     " in tasks.yaml: it names no class. Give its class_path: {class_path: …, init_args: {…}}."),
    ("null", " in tasks.yaml: it has no value. Give a class_path, or remove the key."),
])  # fmt: skip
def test_an_entry_that_is_no_task_is_reported_by_its_name(
    entry: str, told: str, complaint_about: Callable[[str], str]
) -> None:
    good = "{class_path: LanguageAlignment, init_args: {languages: [en]}}"
    assert complaint_about(f"{{good: {good}, other: {entry}}}") == f"error: tasks.other{told}\n"


@pytest.mark.parametrize(("entry", "told"), [
    ("{class_path: LanguageAlignment, init_args: {languages: [en], prompt_field: x}}", "prompt_field"),
    ("{class_path: BOLD, init_args: {max_new_tokens: five}}", "max_new_tokens"),
])  # fmt: skip
def test_a_key_that_several_entries_have_is_reported_where_it_is_wrong(
    entry: str, told: str, complaint_about: Callable[[str], str]
) -> None:
    good = "{class_path: BOLD, init_args: {prompt_field: x, max_new_tokens: 5}}"
    complaint = complaint_about(f"{{one: {good}, wrong: {entry}, other: {good}}}")
    assert complaint.startswith(f"error: tasks.wrong.init_args.{told} in tasks.yaml: ")


def test_what_is_written_instead_of_an_empty_list_is_an_entry(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--model", "org/x", "--tasks", "[]"]) == 2
    assert capsys.readouterr().err == "error: tasks: [] is not a mapping. Write '{NAME: …}'.\n"


def test_what_is_given_for_a_configuration_is_looked_at_where_it_is_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("a.yaml", "a:b.yaml"):
        Path(name).write_text("n: 1")
    for path in ("a.yaml", "a:b.yaml", "~/a.yaml"):
        assert config_files([f"--config={path}"]) == {path: {"n": 1}}
    for other in ("", "-", "{}", "n: 1", "http://none", os.devnull):
        assert config_files(["--config", other]) == {}
    Path("latin.yaml").write_bytes(b"n: \xe4")
    Path("control.yaml").write_bytes(b"n: \x01")
    Path("twice.yaml").write_text("a: 1\nb: {c: 1,\n  c: 2}")
    told = {
        "none.yaml": "no such file",
        "latin.yaml": "UTF-8",
        "control.yaml": "UTF-8",
        "twice.yaml:3": "key c is given twice",
    }
    for wrong, complaint in told.items():
        with pytest.raises(UserError, match=rf"^{wrong}: .*{complaint}"):
            config_files(["--config", wrong.partition(":")[0]])
