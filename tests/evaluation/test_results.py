"""A results file is read back as it was written, and nothing else is taken for one."""

import gzip
import json
import math
from pathlib import Path

import pytest

from inscp.errors import UserError
from inscp.evaluation.items import Item, items_folder, read_items, read_values, write_items, write_values
from inscp.evaluation.results import Metric, Results, TaskResult, require_same_measure

RESULTS = Results(
    "a/model",
    {
        "t": TaskResult(
            "Kind", {"share": Metric(0.5, (0.1, 0.9), 4), "few": Metric(1.0, (math.nan, math.nan), 1)}, 4, 2, 3.5
        )
    },
    {"precision": "float32"},
)


def test_results_are_read_as_they_were_written_and_are_plain_json(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "results.json"
    RESULTS.write(path)
    plain = json.loads(path.read_text("utf-8"), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    task = plain["tasks"]["t"]
    assert task["metrics"] == {"share": 0.5, "few": 1.0}
    assert task["intervals"] == {"share": [0.1, 0.9], "few": [None, None]}
    assert (task["counts"], task["n"], task["version"]) == ({"share": 4, "few": 1}, 4, 2)
    read = Results.read(path)
    assert read.tasks["t"].metrics["share"] == RESULTS.tasks["t"].metrics["share"]
    assert math.isnan(read.tasks["t"].metrics["few"].interval[0])
    assert (read.model, read.environment) == (RESULTS.model, RESULTS.environment)


@pytest.mark.parametrize(("text", "complaint"), [
    ("{", "no results"), ("[]", "no schema"), ('{"a": 1}', "no schema"), ('{"schema": 99}', "version 99"),
    ('{"schema": 2, "model": "m", "environment": {}, "tasks": {"t": {"n": 1}}}', "incomplete"),
    ('{"schema": 2, "model": "m", "tasks": []}', "incomplete"),
])  # fmt: skip
def test_another_file_is_refused_in_one_line(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(text, "utf-8")
    with pytest.raises(UserError, match=complaint):
        Results.read(path)
    with pytest.raises(UserError, match="no results"):
        Results.read(tmp_path / "none.json")


def test_what_two_models_have_judged_is_not_compared(tmp_path: Path) -> None:
    usual, other = (Results("m", {"t": TaskResult("Kind", {}, 4, 2, 3.5, by)}, {}) for by in ("", "another/judge"))
    for number, results in enumerate((usual, other)):
        results.write(tmp_path / f"{number}.json")
    usual, other = (Results.read(tmp_path / f"{number}.json") for number in range(2))
    require_same_measure("t", "one", usual.tasks["t"], "other", usual.tasks["t"])
    with pytest.raises(UserError, match="t is Kind, version 2, by another/judge, but in one Kind, version 2"):
        require_same_measure("t", "other", other.tasks["t"], "one", usual.tasks["t"])


def test_items_are_read_as_they_were_written(tmp_path: Path) -> None:
    items = [Item("a", {"x": True, "y": 0.25}, {"y": 3.0}, {"prompt": "問"}), Item("b\n", {"x": False}),
             Item("any\u2028 line\x85 break\x0c", {"x": False})]  # fmt: skip
    folder = items_folder(tmp_path / "results.json")
    write_items(folder, "t", items)
    found = read_items(folder, "t")
    assert found == items
    assert found[0].values["x"] is True
    with pytest.raises(UserError, match=r"other\.jsonl: no items"):
        read_items(folder, "other")


def test_values_are_read_alike_with_their_texts_and_without(tmp_path: Path) -> None:
    items = [Item("What is 1?", {"x": True, "y": 0.25}, {"y": 3.0}, {"prompt": "What is 1?"}), Item("b", {"x": False})]
    write_items(tmp_path / "whole", "t", items)
    write_values(tmp_path / "kept", "t", read_values(tmp_path / "whole", "t"))
    [file] = (tmp_path / "kept").iterdir()
    assert b"What" not in gzip.decompress(file.read_bytes())
    assert file.read_bytes()[4:8] == bytes(4), "no time, by which the same figures would be another file"
    found = [read_values(tmp_path / folder, "t") for folder in ("whole", "kept")]
    assert found[0] == found[1]
    assert [(dict(item.values), dict(item.weights)) for item in found[0]] == [({"x": True, "y": 0.25}, {"y": 3.0}),
                                                                              ({"x": False}, {})]  # fmt: skip
    whole = file.read_bytes()
    for damaged in (whole[:-9], whole[:10] + bytes(byte ^ 0xFF for byte in whole[10:])):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match="not an item"):
            read_values(tmp_path / "kept", "t")


ITEM = {"id": "a", "values": {"x": 1.0}, "weights": {}, "shown": {}}


@pytest.mark.parametrize("line", ["", "5", "[]", "{", '{"id": "a"}', *(json.dumps(ITEM | wrong) for wrong in (
    {"id": 1}, {"values": None}, {"values": {"x": "much"}}, {"weights": []}, {"shown": "all"}, {"more": 1},
))])  # fmt: skip
def test_a_broken_item_names_its_line(tmp_path: Path, line: str) -> None:
    (tmp_path / "t.jsonl").write_text(f"{json.dumps(ITEM)}\n{line}\n")
    with pytest.raises(UserError, match=r"t\.jsonl:2: not an item"):
        read_items(tmp_path, "t")


@pytest.mark.parametrize("wrong", [
    {"metrics": {"x": "0.5"}}, {"metrics": {}}, {"intervals": {"x": [0, 1], "y": [0, 1]}}, {"intervals": {"x": [0]}},
    {"counts": {"x": None}}, {"counts": {"x": 1.5}}, {"n": "4"}, {"n": True}, {"kind": None}, {"version": "1"},
    {"seconds": None}, {"more": 1},
])  # fmt: skip
def test_a_result_that_is_not_as_its_class_has_it_is_refused(tmp_path: Path, wrong: dict[str, object]) -> None:
    task = {"kind": "K", "metrics": {"x": 0.5}, "intervals": {"x": [0, 1]}, "counts": {"x": 4}, "n": 4, "version": 1,
            "seconds": 2}  # fmt: skip
    whole = {"schema": 2, "model": "m", "environment": {}, "tasks": {"t": task}}
    path = tmp_path / "results.json"
    path.write_text(json.dumps(whole))
    assert Results.read(path).tasks["t"].metrics["x"] == Metric(0.5, (0.0, 1.0), 4)
    path.write_text(json.dumps(whole | {"tasks": {"t": task | wrong}}))
    with pytest.raises(UserError, match="incomplete"):
        Results.read(path)
