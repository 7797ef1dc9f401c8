"""`generate`: what a model says by itself becomes conversations that a training replays."""

import json
import os
import signal
from pathlib import Path

import pytest
from openai_server import Reply, serving
from processes import Command

from inscp.__main__ import main
from inscp.data.sources import ReadReport, Source, read_records

RECORDS = [
    {"instruction": "What is the sea?", "context": "", "response": "Somebody else's answer."},
    {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "And a hill?"},
                  {"role": "assistant", "content": "No."}, {"role": "user", "content": "Why?"}]},
    {"prompt": "Tell me about rain."},
    {"question": "What is the sea?"},
    {"text": "a loop"}, {"text": "a cut"}, {"text": "say nothing"}, {"text": "the same words again, please"},
]  # fmt: skip
ANSWERS: dict[str, Reply] = {
    "a loop": "on and on and on and " * 30,
    "a cut": {"text": "and", "finish_reason": "length"},
    "say nothing": "",
    "the same words again, please": "the same words again, please",
}


def write(records: object, path: Path = Path("prompts.jsonl")) -> str:
    path.write_text("\n".join(map(json.dumps, records)), "utf-8")  # type: ignore[call-overload]
    return str(path)


def lines(file: str) -> list[list[tuple[str, str]]]:
    records = read_records(Source(file), "error", ReadReport())
    return [[(turn.role, turn.text) for turn in record.turns] for record in records]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_whole_answers_stand_after_their_prompts_and_the_others_are_counted(capsys: pytest.CaptureFixture) -> None:
    def said(body: dict) -> Reply:
        question = body["messages"][-1]["content"]
        return ANSWERS.get(question, f"My own: {len(question)}.")

    with serving(said) as server:
        command = ["generate", "--model", "m", "--server.address", server.address, "--data", write(RECORDS)]
        assert main([*command, "--out", "own.jsonl"]) == 0
        told = capsys.readouterr().out
        assert server.asked[0]["temperature"] == 1
        assert len(server.asked) == 7  # one question comes twice
        Path("own.jsonl").unlink()
        assert main([*command, "--out", "own.jsonl"]) == 0
        assert len(server.asked) == 7  # and what is answered is not asked again
    assert lines("own.jsonl") == [
        [("user", "What is the sea?"), ("assistant", "My own: 16.")],
        [("system", "Be brief."), ("user", "And a hill?"), ("assistant", "My own: 11.")],
        [("user", "Tell me about rain."), ("assistant", "My own: 19.")],
    ]
    assert "3 of 7" in told
    for why in ("1 answers: not ended after 256 tokens", "1 answers: looped", "1 answers: copied", "1 answers: empty"):
        assert why in told


def test_what_the_model_says_is_trained_on_as_its_answers(
    tiny_model_folder: str, capsys: pytest.CaptureFixture
) -> None:
    data = write([{"text": f"What is {number}?"} for number in range(40)])
    asked = ["generate", "--model", tiny_model_folder, "--data", data, "--max_new_tokens", "48"]
    for seed, out in ((0, "one.jsonl"), (0, "same.jsonl"), (1, "other.jsonl")):
        assert main([*asked, "--seed", str(seed), "--out", out]) == 0
    next_step = capsys.readouterr().out.rpartition("--data.replay ")[2].strip().strip("'")
    assert lines("one.jsonl") == lines("same.jsonl") != lines("other.jsonl")
    replayed = json.loads(next_step)
    assert replayed["sources"] == "other.jsonl"
    shown = ["inspect", "--model.pretrained", tiny_model_folder, "--data.train", data, "--data.row_length", "256"]
    assert main([*shown, "--data.replay", next_step, "--n", "1000", "--json"]) == 0
    documents = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    texts = json.dumps(documents, ensure_ascii=False)
    assert lines("other.jsonl")[0][0][1] in texts


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (["--out", "prompts.jsonl"], "it already exists"),
        (["--temperature", "-1"], "negative, but is -1.0"),
        (["--max_new_tokens", "1"], "no answer is usable"),
        (["--max_characters", "5"], "a prompt of more than 5 characters"),
        (["--data", "answers.jsonl"], "it has no user turn"),
    ],
)
def test_what_is_wrong_is_reported_in_one_line(
    tiny_model_folder: str, changes: list[str], complaint: str, capsys: pytest.CaptureFixture
) -> None:
    write([{"messages": [{"role": "assistant", "content": "Hi."}]}], Path("answers.jsonl"))
    data = write([{"text": "What is the sea?"}])
    given = {"--model": tiny_model_folder, "--data": data, "--out": "own.jsonl"} | {changes[0]: changes[1]}
    assert main(["generate", *(word for pair in given.items() for word in pair)]) == 2
    assert complaint in capsys.readouterr().err
    assert not Path("own.jsonl").exists()


def test_a_field_with_another_name_is_asked_where_it_is_named_as_the_users() -> None:
    write([{"en": "What is the sea?", "fi": "Mikä on meri?", "answer": "Water."}])
    data = '[{"path": "prompts.jsonl", "fields": {"user": "en"}}]'
    with serving(lambda body: "My own.") as server:
        asked = ["generate", "--model", "m", "--server.address", server.address, "--data", data, "--out", "own.jsonl"]
        assert main(asked) == 0
    assert lines("own.jsonl") == [[("user", "What is the sea?"), ("assistant", "My own.")]]


def test_stopped_by_a_signal_it_continues_with_what_is_not_answered(tmp_path: Path, tiny_model_folder: str) -> None:
    data = write([{"text": f"What is {number}?"} for number in range(400)])
    command = ("generate", "--model", tiny_model_folder, "--data", data, "--out", "own.jsonl",
               "--max_new_tokens", "32", "--batch_size", "4")  # fmt: skip
    process, answers = Command(*command, cwd=tmp_path), Path("own.jsonl.items/answers.jsonl")
    process.until(lambda: answers.exists() and answers.read_bytes().count(b"\n") >= 20)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait() == 75
    assert process.stderr.splitlines()[-1].startswith("SIGTERM: stopped; rerun the same command to resume")
    assert json.loads(Path("own.jsonl.items/cost.json").read_text("utf-8"))["tokens"] > 0
    assert 20 <= answers.read_bytes().count(b"\n") < 400


def test_a_prompt_without_room_for_an_answer_is_a_bad_record(
    tiny_model_folder: str, capsys: pytest.CaptureFixture
) -> None:
    data = write([{"text": "What is the sea?"}, {"text": "w " * 900}])
    asked = ["generate", "--model", tiny_model_folder, "--data", data, "--out", "own.jsonl", "--max_new_tokens", "48"]
    assert main(asked) == 2
    assert "prompts.jsonl:2: a prompt that leaves no room for an answer of 48 tokens" in capsys.readouterr().err
