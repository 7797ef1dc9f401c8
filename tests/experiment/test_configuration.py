"""A configuration is its base and what differs, and its digest knows the files that it names."""

import os
from pathlib import Path

import pytest

from inscp.errors import UserError
from inscp.experiment import configuration
from inscp.experiment.configuration import changed, digest, read_configs


def test_changes_go_key_by_key_and_leave_the_base_alone() -> None:
    base = {"data": {"train": "a", "seed": 0}, "trainer": {"devices": 1}}
    assert changed(base, {"data": {"seed": 1}, "trainer.precision": "32-true"}) == {
        "data": {"train": "a", "seed": 1},
        "trainer": {"devices": 1, "precision": "32-true"},
    }
    assert base == {"data": {"train": "a", "seed": 0}, "trainer": {"devices": 1}}


def test_of_another_class_nothing_is_kept() -> None:
    base = {"data": {"tagger": {"class_path": "InsCPTagger", "init_args": {"loss": "response"}}}}
    other = {"class_path": "PlainTagger", "init_args": {"pairs": "join"}}
    assert changed(base, {"data.tagger": other})["data"]["tagger"] == other
    same = changed(base, {"data.tagger": {"class_path": "InsCPTagger", "init_args": {"pairs": "join"}}})
    assert same["data"]["tagger"]["init_args"] == {"loss": "response", "pairs": "join"}


def test_only_the_names_of_changes_may_be_dotted() -> None:
    assert changed({}, {"mlflow.tags": {"mlflow.parentRunId": "x"}}) == {
        "mlflow": {"tags": {"mlflow.parentRunId": "x"}}
    }


def test_the_digest_is_of_what_a_named_file_holds(tmp_path: Path) -> None:
    file = tmp_path / "text.jsonl"
    configs = [{"data": {"train": [{"path": str(file)}]}}, {"tasks": {"language": {"prompts": str(file)}}}]
    file.write_text('{"text": "a"}')
    before = [digest(config) for config in configs]
    assert [digest(config) for config in configs] == before
    file.write_text('{"text": "b"}')
    os.utime(file, (0, 0))
    configuration._contents.cache_clear()
    assert not {digest(config) for config in configs} & set(before)


def test_a_name_is_that_of_a_file_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = set()
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        Path("text.jsonl").write_text(folder)
        found.add(digest("text.jsonl"))
    assert len(found) == 2


def test_the_digest_does_not_depend_on_the_order_of_keys(tmp_path: Path) -> None:
    (tmp_path / "text.jsonl").write_text('{"text": "a"}')
    config = {"train": str(tmp_path / "text.jsonl"), "language": "fi", "tagger": "InsCPTagger"}
    assert digest(config) == digest(dict(reversed(config.items())))


@pytest.mark.parametrize("text", ["", "[]", "a: ["])
def test_what_is_no_configuration_is_reported(tmp_path: Path, text: str) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=r"broken\.yaml"):
        read_configs([str(file)])


def test_a_key_that_is_there_twice_is_reported_and_an_anchor_may_be_changed(tmp_path: Path) -> None:
    file = tmp_path / "base.yaml"
    file.write_text("a: {x: 1}\nb: &one {x: 1, y: 2}\nc: &two {<<: *one, y: 3}\nd: {<<: *two, y: 4, x: 5}\n")
    assert read_configs([str(file)])["d"] == {"x": 5, "y": 4}
    file.write_text("data:\n  train: x\n  seed: 1\n  train: y\n")
    with pytest.raises(UserError, match=r"base\.yaml:4: the key train is given twice"):
        read_configs([str(file)])


def test_what_only_looks_like_a_path_changes_no_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = {"data": {"language": "fi", "text": "~~~ no home", "long": "x" * 5000}}
    before = digest(config)
    (tmp_path / "fi").mkdir()
    (tmp_path / "fi" / "a.txt").write_text("a")
    configuration._contents.cache_clear()
    assert digest(config) == before


def test_every_byte_of_a_model_counts(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    (tmp_path / "config.json").write_text("{}")
    weights.write_bytes(bytes(3 << 20))
    before = digest(str(tmp_path))
    weights.write_bytes(bytes((3 << 20) - 1) + b"x")
    configuration._contents.cache_clear()
    assert digest(str(tmp_path)) != before
