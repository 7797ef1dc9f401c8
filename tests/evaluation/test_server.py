"""A served model is asked patiently, and its key goes to the server alone."""

import json
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from openai_server import CUT, HANGS, KEY, OpenAIServer, Reply, questions, saying, serving

from inscp.errors import RunError, UserError
from inscp.evaluation.caching_model import CachingModel
from inscp.evaluation.served_model import ServedModel
from inscp.evaluation.server import Chat, Server
from inscp.records import Turn


def server(of: OpenAIServer, **options: Any) -> Server:
    return Server(of.address, "some-model", **options)


def caching_model_of(of: Server, folder: Path) -> CachingModel:
    return CachingModel(ServedModel(of), folder, lambda *_: lambda: None)


def responses(chat: Chat, n: int) -> list[str]:
    answers = dict(chat.ask(questions(n), 16))
    return [answers[place].response for place in range(n)]


TROUBLES: list[Reply] = [429, 408, 500, 503, CUT, HANGS, b"", b"<html>", b"{}", b"null", b'{"choices": []}',
                         b'{"choices": [{"message": null}]}']  # fmt: skip


@pytest.mark.parametrize("trouble", TROUBLES, ids=str)
def test_a_call_that_fails_is_made_again(trouble: Reply) -> None:
    with saying(trouble, "good") as fake:
        chat = Chat(server(fake, timeout=0.5))
        assert responses(chat, 1) == ["good"]
        assert chat.spending.calls == len(fake.asked) == 2


def test_every_trouble_one_after_another_still_ends_with_the_answer() -> None:
    with saying(429, 500, CUT, b"", b"{}", "good") as fake:
        assert responses(Chat(server(fake)), 1) == ["good"]
        assert len(fake.asked) == 6


def test_each_pause_is_longer_than_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inscp.evaluation.server._FIRST_PAUSE", 0.1)
    times: list[float] = []
    with serving(lambda _: times.append(time.monotonic()) or (500 if len(times) < 4 else "good")) as fake:
        assert responses(Chat(server(fake)), 1) == ["good"]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert [gap >= 0.075 * 2**k for k, gap in enumerate(gaps)] == [True] * 3


def test_a_server_that_asks_for_a_pause_gets_it() -> None:
    with saying(429, "good") as fake:
        fake.headers = {"Retry-After": "1"}
        started = time.monotonic()
        assert responses(Chat(server(fake)), 1) == ["good"]
        assert time.monotonic() - started >= 1


def test_a_server_that_never_answers_is_given_up() -> None:
    with saying(503) as fake:
        with pytest.raises(RunError, match=f"{fake.address}.*in 3 tries.*not now") as caught:
            responses(Chat(server(fake, retries=2)), 1)
        assert len(fake.asked) == 3
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("status", "complaint"), [
    (400, "rejects the request.*not now"), (404, "does not serve some-model"), (422, "rejects the request"),
    (401, r"it rejects the key in \$OPENAI_API_KEY"), (403, "rejects the key"),
])  # fmt: skip
def test_a_request_that_is_wrong_is_made_once(status: int, complaint: str) -> None:
    with saying(status) as fake:
        with pytest.raises(UserError, match=f"{fake.address}: .*{complaint}"):
            responses(Chat(server(fake)), 1)
        assert len(fake.asked) == 1


def test_an_account_that_has_run_out_is_not_asked_again() -> None:
    with saying(429) as fake:
        fake.refusal = b'{"error": {"message": "no credit", "code": "insufficient_quota"}}'
        with pytest.raises(UserError, match=r"no credit left.*no credit"):
            responses(Chat(server(fake)), 1)
        assert len(fake.asked) == 1


def test_no_server_is_one_line_at_the_first_contact() -> None:
    with pytest.raises(UserError, match=r"http://127\.0\.0\.1:9/v1: no server responds .*refused.*Start it") as caught:
        Chat(Server("http://127.0.0.1:9/v1", "m")).connect()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "complaint"), [(KEY, "rejects the key"), ("", "it needs a key, but .OPENAI_API_KEY is empty")]
)
def test_a_server_that_wants_another_key_says_so_at_the_first_contact(
    key: str, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with saying("good") as fake:
        fake.models = 401
        with pytest.raises(UserError, match=complaint):
            Chat(server(fake)).connect()
        assert not fake.asked


@pytest.mark.parametrize("status", [403, 404, 500])
def test_a_server_that_does_not_list_its_models_is_there_all_the_same(status: int) -> None:
    with saying("good") as fake:
        fake.models = status
        assert responses(Chat(server(fake)), 1) == ["good"]


@pytest.mark.parametrize(("wrong", "complaint"), [
    ({"address": "localhost:8000"}, "not the URL"), ({"address": "http://me:pass@host/v1"}, "^host: .* password"),
    ({"concurrency": 0}, "below"), ({"retries": -1}, "below"), ({"budget_money": 1.0}, "without prices"),
    ({"address": "https://host/v1?key=pass@"}, "^host: the URL contains a query"),
])  # fmt: skip
def test_a_configuration_that_cannot_be_meant_is_refused(wrong: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as caught:
        Chat(Server(**{"address": "http://host/v1", "model": "m", **wrong}))
    assert "pass@" not in str(caught.value)


@pytest.mark.parametrize("key", ["two words", "smörgås", "a\nb"])
def test_what_can_be_no_key_is_refused_and_not_shown(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(UserError, match=r"\$OPENAI_API_KEY: it does not contain a valid key") as caught:
        Chat(Server("http://host/v1", "m"))
    assert key not in str(caught.value)


@pytest.mark.parametrize("status", [400, 401, 429, 500])
def test_the_key_goes_to_the_server_and_nowhere_else(
    status: int, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    with saying("good", status) as fake:
        fake.refusal = f'{{"error": {{"message": "{KEY} is not good enough"}}}}'.encode()
        model = ServedModel(server(fake, retries=1))
        caching_model = CachingModel(model, tmp_path, lambda *_: lambda: None)
        caching_model.generate("", questions(1), 16)
        with pytest.raises((UserError, RunError)) as caught:
            caching_model.generate("", [(Turn("user", "more"),)], 16)
        assert fake.keys == {f"Bearer {KEY}"}
        seen = [str(caught.value), repr(model), repr(model._chat.server), json.dumps(asdict(model._chat.server)),
                caplog.text, *capfd.readouterr(), *(path.read_text() for path in tmp_path.rglob("*.*"))]  # fmt: skip
    assert [KEY in text for text in seen] == [False] * len(seen)
    assert "some-model" in seen[-1]


def test_so_many_calls_are_made_at_once_and_no_more() -> None:
    are_three = threading.Barrier(3)

    def answer(_: dict[str, Any]) -> Reply:
        are_three.wait(30)
        time.sleep(0.03)  # for a fourth to come
        return "good"

    with serving(answer) as fake:
        assert responses(Chat(server(fake, concurrency=3)), 12) == ["good"] * 12
        assert fake.most_at_once == 3


def test_answers_come_as_they_arrive() -> None:
    seen = threading.Event()

    def answer(body: dict[str, Any]) -> str:
        assert "question 0" not in body["messages"][-1]["content"] or seen.wait(30)
        return "good"

    with serving(answer) as fake:
        places = []
        for place, _ in Chat(server(fake, concurrency=2)).ask(questions(3), 16):
            places.append(place)
            if len(places) == 2:
                seen.set()
    assert places == [1, 2, 0]


def test_what_is_on_its_way_when_another_call_fails_still_arrives() -> None:
    are_on_their_way = threading.Barrier(3)

    def answer(body: dict[str, Any]) -> Reply:
        are_on_their_way.wait(30)
        if body["messages"][-1]["content"] == "question 0":
            return 400
        time.sleep(0.2)  # until the failure is known
        return "good"

    with serving(answer) as fake:
        found: list[int] = []
        with pytest.raises(UserError, match="rejects the request"):
            found.extend(place for place, _ in Chat(server(fake, concurrency=3)).ask(questions(50), 16))
        assert sorted(found) == [1, 2]
        assert len(fake.asked) == 3


def test_options_go_into_the_request_and_null_leaves_a_key_out() -> None:
    with saying("good") as fake:
        options = {"temperature": None, "max_tokens": None, "max_completion_tokens": 99, "seed": 7}
        list(Chat(server(fake, options=options)).ask(questions(1), 16))
        [body] = fake.asked
        assert {key: body.get(key) for key in (*options, "model")} == {**options, "model": "some-model"}
        assert not {"temperature", "max_tokens"} & body.keys()
        list(Chat(server(fake)).ask(questions(1), 16))
        assert (fake.asked[1]["temperature"], fake.asked[1]["max_tokens"]) == (0, 16)


def test_a_served_model_answers_conversations_and_continues_with_documents(tmp_path: Path) -> None:
    with serving(lambda body: {"text": "on", "finish_reason": "stop" if "messages" in body else "length"}) as fake:
        talk = (Turn("system", "Be brief."), Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c"))
        caching_model = caching_model_of(server(fake), tmp_path)
        answered, gone_on = caching_model.generate("", [talk, (Turn("document", "Once"),)], 16)
        assert (answered.prompt, answered.response, answered.n_tokens, answered.ended) == ("c", "on", 2, True)
        assert (gone_on.prompt, gone_on.response, gone_on.ended) == ("Once", "on", False)
        asked = {body["path"]: body for body in fake.asked}
        assert asked["/v1/completions"]["prompt"] == "Once"
        assert [turn["role"] for turn in asked["/v1/chat/completions"]["messages"]] == [turn.role for turn in talk]


def test_a_served_model_that_says_nothing_has_answered() -> None:
    with saying({"text": None}) as fake:  # type: ignore[dict-item]
        assert responses(Chat(server(fake)), 1) == [""]
        assert len(fake.asked) == 1


def test_half_a_character_does_not_reach_the_file_of_answers(tmp_path: Path) -> None:
    with saying("a\ud83d") as fake:
        [answer] = caching_model_of(server(fake), tmp_path).generate("", questions(1), 16)
        assert answer.response == "a?"


def test_a_served_model_that_was_stopped_is_asked_for_the_rest_alone(tmp_path: Path) -> None:
    with saying("good") as fake:
        with pytest.raises(UserError, match="budget"):
            caching_model_of(server(fake, budget_calls=4), tmp_path).generate("", questions(10), 16)
        caching_model = caching_model_of(server(fake), tmp_path)
        assert [answer.response for answer in caching_model.generate("", questions(10), 16)] == ["good"] * 10
        assert sorted(fake.prompts()) == sorted(f"question {k}" for k in range(10))


def test_a_served_model_gives_no_likelihoods() -> None:
    with pytest.raises(UserError, match="http://host/v1: this task measures likelihoods"):
        ServedModel(Server("http://host/v1", "m")).nlls([])


def test_without_the_openai_library_one_line_shows_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(UserError, match=r'openai: it is not installed. Run pip install "inscp\[eval\]"'):
        Chat(Server("http://host/v1", "m")).connect()


def test_the_openai_library_is_imported_when_a_server_is_asked_only() -> None:
    code = "import sys, inscp.evaluation.server, inscp.evaluation.tasks.mt_bench; print('openai' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


@pytest.mark.parametrize(("said", "response"), [
    ("<think>They ask why.</think>\n\n因為大氣。", "因為大氣。"),
    ("They ask why.\n</think>\n\n因為大氣。", "因為大氣。"),  # where the template has opened it
    ("<think>They ask why", ""),
    ("a <think> in the text", "a <think> in the text"),
])  # fmt: skip
def test_reasoning_is_no_part_of_the_answer(said: str, response: str, tmp_path: Path) -> None:
    with saying(said) as fake:
        [answer] = caching_model_of(server(fake), tmp_path).generate("asking", questions(1), 16)
    assert answer.response == response


def test_an_answer_that_is_cut_while_a_model_reasons_is_none_though_the_template_has_opened_the_tag(
    tmp_path: Path,
) -> None:
    whole, cut = "They ask.\n</think>\n\nSo.", {"text": "They ask and I", "finish_reason": "length"}
    with saying(whole, whole, cut) as fake:
        reasoned = caching_model_of(server(fake, concurrency=1), tmp_path / "a").generate("asking", questions(3), 16)
    assert [answer.response for answer in reasoned] == ["So.", "So.", ""]
    with saying("So.", whole, cut) as fake:  # one stray tag is no habit
        plain = caching_model_of(server(fake, concurrency=1), tmp_path / "b").generate("asking", questions(3), 16)
    assert [answer.response for answer in plain] == ["So.", "So.", "They ask and I"]
