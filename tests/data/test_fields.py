"""The common shapes are found by their field names; what does not fit has a clear reason."""

import pytest

from inscp.data.fields import to_turns
from inscp.data.rows import BadRow
from inscp.records import Turn

PAIR = (("user", "Q"), ("assistant", "A"))
WITH_CONTEXT = (("user", "Q\n\nC"), ("assistant", "A"))
CONVERSATION = (("system", "S"), *PAIR, ("user", "Q2"), ("assistant", "A2"))


def shape(turns):
    return turns if isinstance(turns, BadRow) else tuple((turn.role, turn.text) for turn in turns)


def spoken(speaker: str, text: str, *speakers: str, **extra: object) -> list[dict]:
    texts = ("S", "Q", "A", "Q2", "A2")
    speakers = (*speakers, *speakers[1:])
    return [{speaker: who, text: what, **extra} for who, what in zip(speakers, texts, strict=True)]


def in_parts(*texts: str) -> list[dict]:
    return [{"type": "text", "text": text, "image": None} for text in texts]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"text": "T", "id": 7}, (("document", "T"),)),
        ({"text": "\u3000T\n\nT \n"}, (("document", "T\n\nT"),)),
        ({"title": "x", "content": "T"}, (("document", "T"),)),
        ({"instruction": "Q", "input": "", "output": "A"}, PAIR),
        ({"instruction": "Q", "input": None, "output": "A"}, PAIR),
        ({"instruction": "Q", "output": "A"}, PAIR),
        ({"instruction": "", "input": "Q", "output": "A"}, PAIR),
        ({"instruction": "Q2", "input": "", "output": "A2", "history": [["Q", "A"]], "system": "S"}, CONVERSATION),
        ({"instruction": "Q", "output": "A", "history": [], "system": None}, PAIR),
        ({"conversations": spoken("from", "value", "gpt", "human", "gpt")[1:], "system": "S"}, CONVERSATION),
        ({"messages": spoken("role", "content", "system", "user", "assistant"), "system": "another"}, CONVERSATION),
        ({"instruction": "Q", "input": "C", "output": "A", "text": "all of it"}, WITH_CONTEXT),
        ({"instruction": "Q", "context": "C", "response": "A", "category": "qa"}, WITH_CONTEXT),
        ({"question": "Q", "answer": "A"}, PAIR),
        ({"question": "\n Q\n", "answer": " A\n"}, PAIR),
        ({"prompt": "Q", "response": "A"}, PAIR),
        ({"prompt": "Q", "completion": "A"}, PAIR),
        ({"messages": spoken("role", "content", "system", "user", "assistant")}, CONVERSATION),
        ({"conversations": spoken("from", "value", "system", "human", "gpt", weight=0)}, CONVERSATION),
        ({"id": "1", "utterances": spoken("name", "text", "system", "user", "agent", time=1.5)}, CONVERSATION),
        ({"messages": [{"role": "user", "name": "Ann", "content": "Q"}, {"role": "Assistant", "content": "A"}]}, PAIR),
        ({"messages": spoken("role", "content", "developer", "user", "assistant", tool_calls=[])}, CONVERSATION),
        (
            {"messages": [{"role": "user", "content": in_parts("Q")}, {"role": "model", "content": in_parts("", "A")}]},
            PAIR,
        ),
    ],
)
def test_every_common_shape_is_found(row, expected):
    assert shape(to_turns(row)) == expected


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "Q", "id": 7}, (("user", "Q"),)),
        ({"question": "Q", "system": "S"}, (("system", "S"), ("user", "Q"))),
        ({"instruction": "Q", "input": "C"}, (("user", "Q\n\nC"),)),
        ({"prompt": "another", "question": "Q", "answer": "A"}, PAIR),
        ({"prompt": "another", "text": "T"}, (("document", "T"),)),
    ],
)
def test_what_nobody_answers_is_found_only_where_requests_are_asked_for_and_after_all_else(row, expected):
    assert shape(to_turns(row, requests=True)) == expected
    if dict(expected).keys() & {"assistant", "document"}:
        assert shape(to_turns(row)) == expected
    else:
        assert to_turns(row).why == "none of its fields is known"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"text": "c"}, (("document", "C"),)),
        ({"user": "q", "assistant": "a"}, PAIR),
        ({"user": "q", "context": "c", "assistant": "a"}, WITH_CONTEXT),
        ({"turns": "t"}, PAIR),
        ({}, (("document", "T"),)),
    ],
)
def test_named_fields_win_over_found_ones(fields, expected):
    turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    assert shape(to_turns({"text": "T", "q": "Q", "a": "A", "c": "C", "t": turns}, fields)) == expected


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({}, "none of its fields is known (its fields: none)"),
        ({"title": "x", "text": None}, "none of its fields is known (its fields: title (str), text (NoneType))"),
        ({"messages": None}, "none of its fields is known (its fields: messages (NoneType))"),
        ({"question": "Q"}, "none of its fields is known (its fields: question (str))"),
        ({"text": ""}, "text has no text"),
        ({"text": " \n\t\u3000"}, "text has no text"),
        ({"text": "half \ud83d"}, "text contains half a surrogate pair, which is not valid Unicode"),
        ({"question": "Q", "answer": None}, "answer is not text but NoneType"),
        ({"question": 7, "answer": "A"}, "question is not text but int"),
        ({"question": "Q", "answer": " "}, "answer has no text"),
        ({"question": "Q", "context": ["C"], "answer": "A"}, "context is not text but list"),
        ({"question": "Q", "context": "\udc80", "answer": "A"}, "question contains half a surrogate pair, which"),
        ({"question": "Q", "answer": "A", "history": "Q"}, "history is not a list of pairs"),
        ({"question": "Q", "answer": "A", "history": [["Q", "A", "Q"]]}, "history is not a list of pairs"),
        ({"messages": []}, "the conversation is empty"),
        ({"messages": ["Q", "A"]}, "a conversation must be a list of objects"),
        ({"messages": [{"role": "alien", "content": "Q"}]}, "unknown speaker ('alien' is not one of system, devel"),
        ({"messages": [{"content": "Q"}]}, "unknown speaker (None is not one of"),
        ({"messages": [{"role": "user"}]}, "a turn is not text but NoneType"),
        ({"messages": [{"role": "user", "content": ""}]}, "a turn has no text"),
        ({"messages": [{"role": "user", "content": []}]}, "a turn is not text but list"),
        (
            {"messages": [{"role": "user", "content": [*in_parts("Q"), {"type": "image", "text": "Q"}]}]},
            "a turn is not text but list",
        ),
        ({"messages": [{"role": "assistant", "content": "Wait.", "tool_calls": [{}]}]}, "a turn calls a tool ()"),
        ({"messages": [{"role": "assistant", "content": None, "tool_calls": [{}]}]}, "a turn calls a tool ()"),
        ({"question": "Q", "answer": "<think>\nhm\n</think>\n\n"}, "answer has no text after its reasoning"),
        ({"question": "Q", "answer": "<think>\nhm and"}, "answer has no text after its reasoning"),
    ],
)
def test_what_does_not_fit_has_a_clear_reason(row, reason):
    bad = to_turns(row)
    assert isinstance(bad, BadRow)
    assert f"{bad.why} ({bad.detail})".startswith(reason)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("<think>\nhm\n</think>\n\nA", "A"),
        ("\n<think></think>A", "A"),
        ("<think>a </think>? hm</think>\nA", "A"),
        ("A <think>b</think>", "A <think>b</think>"),
    ],
)
def test_an_assistant_s_reasoning_is_left_out(answer: str, said: str) -> None:
    rounds = [{"role": "user", "content": answer}, {"role": "assistant", "content": answer}] * 2
    expected = (("user", answer.strip()), ("assistant", said))
    assert shape(to_turns({"messages": rounds})) == expected * 2
    assert shape(to_turns({"question": answer, "answer": answer})) == expected
    assert shape(to_turns({"text": answer})) == (("document", answer.strip()),)


def test_a_missing_named_field_is_a_bad_row():
    assert to_turns({"q": "Q"}, {"user": "q", "assistant": "a"}) == BadRow("the field a is missing", "its fields: q")


def test_a_row_that_was_bad_stays_bad():
    assert to_turns(BadRow("not valid JSON"), {"text": "body"}) == BadRow("not valid JSON")


def test_a_column_without_a_name_is_no_turn() -> None:
    """Pandas writes the number of the row into one."""
    assert to_turns({"": "0", "text": "hello"}) == (Turn("document", "hello"),)
    pair = {"": "7", "question": "why?", "answer": "so"}
    assert to_turns(pair) == (Turn("user", "why?"), Turn("assistant", "so"))
