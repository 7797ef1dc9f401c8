"""What the callbacks that ask make of answers."""

from pathlib import Path

import pytest

from inscp.callbacks.before_after import BeforeAfter
from inscp.callbacks.prompting import PromptingCallback
from inscp.callbacks.stop_when_aligned import StopWhenAligned
from inscp.errors import UserError
from inscp.records import Generation


@pytest.mark.parametrize("kind", [BeforeAfter, StopWhenAligned])
def test_an_answer_of_no_tokens_is_refused_before_anything_is_trained(kind: type[PromptingCallback]) -> None:
    with pytest.raises(UserError, match=rf"{kind.section}\.max_new_tokens: must be at least 1, not 0"):
        kind(max_new_tokens=0)


def test_an_answer_s_language_is_not_that_of_the_reasoning_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"zh-TW": "天空為什麼是藍色的？"}\n' * 2, "utf-8")
    said = ["<think>They ask why the sky is blue.</think>\n\n因為大氣散射藍色的光。", "<think>They ask why the sky"]
    found = [(place, Generation("天空為什麼是藍色的？", text, 9, place == 0)) for place, text in enumerate(said)]
    monkeypatch.setattr("inscp.callbacks.prompting.generate", lambda *_: reversed(found))
    answers, shares = BeforeAfter(prompts=str(prompts), languages=["zh-TW"]).ask("zh-TW", None, None)  # type: ignore[arg-type]
    assert [answer.response for answer in answers] == ["因為大氣散射藍色的光。", ""]
    assert (shares["in_language"], shares["empty"], shares["in_language_if_sound"]) == (0.5, 0.5, 1.0)
