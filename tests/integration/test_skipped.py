"""Every command tells what it left out, of which source and where first, in the same words."""

import json
from pathlib import Path

import pytest

from inscp.__main__ import main

SOURCES = '["a.jsonl", "b.jsonl"]'
INSPECT = ["--data.train", SOURCES, "--data.on_bad_record", "skip", "--data.row_length", "256", "--n", "99"]
OTHERS = ["--data", SOURCES, "--on_bad_record", "skip", "--out", "out"]
COMMANDS = {
    "inspect": [*INSPECT, "--model.pretrained"],
    "extend": [*OTHERS, "--tokens", "2", "--model"],
    "generate": [*OTHERS, "--max_new_tokens", "128", "--model"],
    "score": [*OTHERS, "--model"],
    "select": [*OTHERS, "--model"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_left_out_is_reported_alike(
    command: str,
    tiny_model_folder: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    texts = [json.dumps({"text": f"What is the river {number}?"}) for number in range(30)]
    Path("a.jsonl").write_text("\n".join(texts), "utf-8")
    Path("b.jsonl").write_text("\n".join([texts[0], "{broken", texts[1], "{broken"]), "utf-8")
    assert main([command, *COMMANDS[command], tiny_model_folder]) == 0
    told = capsys.readouterr()
    [line] = [line for line in (told.out + told.err).splitlines() if "skipped" in line]
    assert line.endswith("skipped 2 of b.jsonl: not valid JSON (the first: b.jsonl:2)")
    if command == "select":
        assert "b.jsonl:2" in Path("out/_report.html").read_text("utf-8")
