"""Each filter drops what it names, says why, and lets the rest through."""

import json
import time
from pathlib import Path

import pytest

from inscp.errors import UserError
from inscp.records import Candidate, Record, Turn
from inscp.selection.filters import Drop, Filter, Length, Perplexity, Selector
from inscp.selection.languages import Chinese, Language, Script
from inscp.selection.quality import BrokenText, Contamination, PersonalData, Refusals
from inscp.text.language import LanguageIdentifier


def candidate(text: str, n_tokens: int = 10, perplexity: float | None = None, source: str = "a") -> Candidate:
    return Candidate(Record(f"{source}:1", (Turn("document", text),)), source, n_tokens, perplexity)


def why(one: Filter, text: str) -> str | None:
    verdict = one.judge(candidate(text))
    return verdict.why if isinstance(verdict, Drop) else None


def kept(one: Selector, given: list[Candidate]) -> list[Candidate]:
    return [before for before, verdict in one.verdicts(given) if isinstance(verdict, Candidate)]


def test_a_band_of_perplexity_keeps_what_lies_in_it() -> None:
    every = [candidate("x", 10, perplexity) for perplexity in (1.0, 2.7, 18.2, 54.6)]
    assert [c.perplexity for c in kept(Perplexity(minimum=2.7, maximum=18.2), every)] == [2.7, 18.2]
    assert not kept(Perplexity(maximum=0), every)


def test_quantiles_are_those_of_each_source() -> None:
    every = [
        candidate("x", 1, float(i), source)
        for source, offset in (("a", 0), ("b", 5))
        for i in range(offset, offset + 9)
    ]
    lowest = [(c.source, c.perplexity) for c in kept(Perplexity(upper=1 / 3), every)]
    assert lowest == [("a", 0.0), ("a", 1.0), ("a", 2.0), ("b", 5.0), ("b", 6.0), ("b", 7.0)]


def test_perplexity_without_scores_is_an_error_that_shows_how_to_get_them() -> None:
    for one in (Perplexity(maximum=15), Perplexity(upper=0.5)):
        with pytest.raises(UserError, match=r"Perplexity: the data has no scores\. Run `score`"):
            kept(one, [candidate("x")])


def test_length_counts_tokens() -> None:
    assert [c.n_tokens for c in kept(Length(4, 9), [candidate("x", n) for n in (1, 4, 9, 10)])] == [4, 9]


def test_language_names_what_it_found() -> None:
    one = Language(["fi"], shorter=5)
    assert why(one, "Tämä on suomenkielinen lause, jossa kerrotaan säästä ja järvistä.") is None
    assert why(one, "This is an English sentence about the weather and the lakes.") == "language en"
    assert why(one, "😀😀😀😀😀") == "language und"
    assert why(one, "Hi") is None
    assert one.found()["languages"] == {"fi": 1, "en": 1, "und": 1}


def test_what_may_be_in_any_of_the_languages_is_in_one_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    likely = {"sv": 0.6, "no": 0.07, "da": 0.06}
    monkeypatch.setattr(LanguageIdentifier, "likely", lambda *_: likely)
    assert why(Language(["nb", "da"]), "Så er det det.") is None
    assert why(Language(["nb"]), "Så er det det.") == "language sv"


def test_chinese_without_kana_is_no_japanese_where_only_chinese_is_asked_for() -> None:
    for text in ("最新情報", "自動車製造業", "開始時間及場所"):  # at most 4 % Chinese, fastText says
        assert why(Language(["zh-TW"]), text) is None
        assert why(Language(["zh", "fi"]), text) is None
        assert why(Language(["fi"]), text) == "language ja"
        both = Language(["zh", "ja"])
        assert why(both, text) is None
        assert both.found()["languages"] == {"ja": 1}
    assert why(Language(["zh"]), "自動車のニュースです") == "language ja"


def test_script_is_the_share_of_letters() -> None:
    one = Script(["Han", "Bopomofo"], share=0.5)
    assert why(one, "今天天氣很好 OK") is None
    assert why(one, "今天 OK") is None
    assert why(one, "今天 the weather is fine") == "other scripts"
    assert why(one, "123 !?") == "no letters"
    with pytest.raises(UserError, match="Klingon"):
        Script(["Klingon"])


@pytest.mark.parametrize(
    ("text", "traditional", "simplified"),
    [
        ("這個軟體的記憶體不夠用，請重新開機。", None, "traditional characters"),
        ("这个软件的内存不够用，请重新开机。", "simplified characters", None),
        ("你好", None, None),  # the same in both
    ],
)
def test_traditional_and_simplified_are_distinguished(
    text: str, traditional: str | None, simplified: str | None
) -> None:
    assert why(Chinese("traditional"), text) == traditional
    assert why(Chinese("simplified"), text) == simplified


def test_the_words_of_the_mainland_are_distinguished_from_those_of_taiwan() -> None:
    taiwan = "這個軟體的記憶體不夠，印表機也壞了，網路和影片都很慢。"
    mainland = "這個軟件的內存不夠，打印機也壞了，網絡和視頻都很慢。"
    assert why(Chinese(words="taiwan"), taiwan) is None
    assert why(Chinese(words="taiwan"), mainland) == "words of the other region"
    assert why(Chinese(words="mainland"), taiwan) == "words of the other region"
    in_simplified = "这个软体的记忆体不够，印表机也坏了，网路和影片都很慢。"
    assert why(Chinese("simplified", words="mainland"), in_simplified) == "words of the other region"
    assert why(Chinese("simplified", words="mainland"), "这个软件的内存不够，打印机也坏了，网络和视频都很慢。") is None
    assert why(Chinese(words="taiwan"), "今天天氣很好") is None
    assert why(Chinese(words="taiwan"), "這個軟件很好，內存也夠。") is None, "two may be chance"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Une phrase où rien n'est cassé, même l'été.", None),
        ("HyvÃ¤Ã¤ pÃ¤ivÃ¤Ã¤, mitÃ¤ kuuluu?", "wrongly decoded"),
        ("lost \ufffd characters", "wrongly decoded"),
        ("<div><p><b>Hi</b></p></div>", "mark-up"),
        ("The result: a < b and b > c, as in x<y.", None),
        ("the same line\n" * 4 + "and another one", "repeats lines"),
        ("the same line\n" * 2 + "and another one", None),  # of three lines
        ("{\n}\n{\n}\n{\n}\nif x: stop", None),
        ("Mýrdalsjökull ([ˈmirtalsˌjœːkʏtl̥], ˌdrɑːnɡə)", None),
        ("round and round we go " * 10, "repeats itself"),
        ("😀😀😀", "no words"),
    ],
)
def test_broken_text_is_distinguished_from_whole(text: str, expected: str | None) -> None:
    assert why(BrokenText(), text) == expected


REFUSALS = (
    "As an AI language model, I cannot",
    "I'm sorry, but I can't help",
    "作為一個AI語言模型，我無法",
    "身為人工智慧助手，我",
    "作为一个人工智能语言模型，我不能",
    "AI言語モデルとして、できません",
    "AI言語モデルとして、意見を持っていません",
    "Tekoälynä en voi",
    "Olen vain kielimalli.",
    "كنموذج لغوي لا أستطيع",
    "Jag är en modell",
)


@pytest.mark.parametrize("text", REFUSALS)
def test_refusals_of_models_are_found_in_every_language_of_the_list_and_the_users(text: str) -> None:
    assert why(Refusals(["jag är en modell"]), text) == "says it is a model"


NO_REFUSALS = (
    "Language models are trained on text; the model was sorry.",
    "作為 Gmail 使用者，我每天寫信。",
    "台北作為Taiwan的首都",
    "身為一名 Thai 料理廚師，他很忙。",
    "作為台灣AI產業的龍頭",
    "作為全球人工智慧研究的重鎮",
    "Hawaiiは州として独立できない",
    "MAIL は添付として送信できません。",
    "GPT-4 toimii kielimallina hyvin.",
    "“I'm sorry, but I can't stay,” she said.",
)


@pytest.mark.parametrize("text", NO_REFUSALS)
def test_talk_about_models_is_no_refusal(text: str) -> None:
    assert why(Refusals(), text) is None


def test_personal_data_is_masked_and_nothing_else() -> None:
    one = PersonalData(phone_regions=["FI"], numbers=["luhn", "iban", "fi.hetu"])
    text = (
        "Mail a.b@example.org or call 040 123 4567; card 4111 1111 1111 1111, id 131052-308T, in 2024: 12 345 people."
    )
    verdict = one.judge(candidate(text))
    assert isinstance(verdict, Candidate)
    assert verdict.text == "Mail [email] or call [phone]; card [luhn], id [fi.hetu], in 2024: 12 345 people."
    assert one.found()["masked"] == {"email": 1, "luhn": 1, "fi.hetu": 1, "phone": 1}
    for text, masked in (
        ("問題請寄信到我的信箱abc@example.com謝謝您。", "問題請寄信到我的信箱[email]謝謝您。"),
        ("カード番号4111111111111111です", "カード番号[luhn]です"),
        ("VISA 4111 1111 1111 1111 2026", "VISA [luhn] 2026"),
        ("1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18", "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18"),
        ("IBAN FI21 1234 5600 0007 85", "IBAN [iban]"),
        ("Kesäolympiavuodet 1900 1904 1908 1912 1920 1924 1928 1932 1936 1948 1952", None),
        ("npm install phaser@3.23.0", None),
        ("luku 3.0401234567", None),  # whose decimals might be a number of a phone
        ("x ≈ -0.8769848 ja y ≈ 0.4567892; 3.1415926535, 2.718281828", None),
    ):
        masked = text if masked is None else masked
        verdict = PersonalData(["FI", "DE"], numbers=["luhn", "iban"]).judge(candidate(text))
        assert isinstance(verdict, Candidate)
        assert verdict.text == masked
    with pytest.raises(UserError, match="python-stdnum"):
        PersonalData(numbers=["no.such"])


def test_tables_of_numbers_stay_and_take_no_time_that_grows_with_their_square() -> None:
    table = " ".join(f"{5000 + 7919 * i % 5000}" for i in range(4000))
    verdict = PersonalData(numbers=["luhn", "iban"]).judge(candidate(f"{table} {'0000 ' * 3000}"))
    assert isinstance(verdict, Candidate)
    assert verdict.text.count("[luhn]") <= 2  # at the ends, where nothing tells a card from a row


def test_a_name_in_a_benchmark_condemns_no_text_in_a_script_without_spaces(tmp_path: Path) -> None:
    rows = [
        {"q": "タイの首都は正式には何と呼ばれていて、その名前は何を意味しますか？", "a": "カスティーリャ・イ・レオン州"}
    ]
    (tmp_path / "benchmark.jsonl").write_text(json.dumps(rows[0]), "utf-8")
    one = Contamination([str(tmp_path / "benchmark.jsonl")])
    assert why(one, "サラマンカはカスティーリャ・イ・レオン州にある都市である。") is None
    assert why(one, f"質問：{rows[0]['q']}") == "in a benchmark"


def test_a_benchmark_is_found_inside_other_text_in_any_script(tmp_path: Path) -> None:
    english = "What is the name of the longest river that flows through the capital of the country"
    path = tmp_path / "benchmark.jsonl"
    rows = [{"q": {"text": english, "choices": ["short"]}}, {"zh": "請說明台灣最高的山叫什麼名字以及它有多高"}]
    path.write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
    one = Contamination([str(path)])
    assert why(one, f"Tell me. {english.upper()}?") == "in a benchmark"
    assert why(one, "問題：請說明台灣最高的山叫什麼名字以及它有多高？") == "in a benchmark"
    assert why(one, "What is the name of the longest river?") is None
    assert why(one, "short") is None
    (tmp_path / "short.jsonl").write_text('{"q": "too short"}', "utf-8")
    with pytest.raises(UserError, match="none of its texts"):
        Contamination([str(tmp_path / "short.jsonl")])
    (tmp_path / "pretty.jsonl").write_text('{\n "q": "a"\n}', "utf-8")
    with pytest.raises(UserError, match=r"pretty.jsonl:1.*cannot be checked"):
        Contamination([str(tmp_path / "pretty.jsonl")])
    with pytest.raises(UserError, match=r"nowhere\.jsonl: no such file"):
        Contamination(["nowhere.jsonl"])


def test_what_an_evaluation_asks_is_a_benchmark(tmp_path: Path) -> None:
    asked = "What is the name of the longest river that flows through the capital of the country"
    (tmp_path / "asked.jsonl").write_text(json.dumps({"prompt": asked}), "utf-8")
    path = tmp_path / "evaluate.yaml"
    (tmp_path / "results.json").write_text('{"model": "said", "tasks": {}}', "utf-8")
    options = {"held_out": {"en": str(tmp_path / "asked.jsonl")}, "opponent": str(tmp_path / "results.json")}
    task = {"class_path": "Retention", "init_args": options}
    path.write_text(json.dumps({"tasks": {"one": task, "two": task}}), "utf-8")
    one = Contamination(evaluations=[str(path)])
    assert why(one, f"Tell me. {asked}?") == "in a benchmark"
    before = one.contents()
    (tmp_path / "asked.jsonl").write_text(json.dumps({"prompt": asked, "answer": "no"}), "utf-8")
    assert Contamination(evaluations=[str(path)]).contents() != before
    (tmp_path / "group").mkdir()
    (tmp_path / "asked.jsonl").rename(tmp_path / "group" / "mmlu_geography.jsonl")
    path.write_text(json.dumps({"tasks": {"mmlu": {"init_args": {"files": str(tmp_path / "group")}}}}), "utf-8")
    assert why(Contamination(evaluations=[str(path)]), f"Tell me. {asked}?") == "in a benchmark"
    path.write_text("tasks: {arc: {class_path: Knowledge, init_args: {benchmark: arc_challenge}}}", "utf-8")
    with pytest.raises(UserError, match="the task arc names no file"):
        Contamination(evaluations=[str(path)])
    path.write_text("filters: []", "utf-8")
    with pytest.raises(UserError, match="it has no tasks"):
        Contamination(evaluations=[str(path)])
    with pytest.raises(UserError, match="no benchmark is given"):
        Contamination()


@pytest.mark.parametrize(("n_words", "is_known"), [(8, True), (7, False)])
def test_a_benchmark_text_of_fewer_words_than_a_run_is_looked_for_as_a_whole(
    tmp_path: Path, n_words: int, is_known: bool
) -> None:
    asked = " ".join(["which", "river", "runs", "through", "all", "of", "these", "countries"][:n_words])
    other = " ".join(f"word{n}" for n in range(20))
    path = tmp_path / "benchmark.jsonl"
    path.write_text("\n".join(json.dumps({"q": text}) for text in (asked, other)), "utf-8")
    one = Contamination([str(path)])
    assert (why(one, f"And {asked}?") == "in a benchmark") == is_known
    assert why(one, f"And {other.rpartition(' ')[0]}?") == "in a benchmark"
    assert why(one, f"And {asked.rpartition(' ')[0]}?") is None


def test_an_answer_may_repeat_what_it_was_asked_about() -> None:
    lines = "one two three\nfour five six\nseven eight nine\nten eleven twelve"
    turns = Turn("user", lines), Turn("assistant", lines)
    assert isinstance(BrokenText().judge(Candidate(Record("a:1", turns), "a", 10)), Candidate)


def test_vowel_signs_are_no_letters() -> None:
    mixed = "लड़का गया और लड़की गयी, " + "and all of this is in English"
    assert why(Script(["Devanagari"]), mixed) == "other scripts"
    assert why(Script(["Devanagari"]), "लड़का गया और लड़की गयी") is None


def test_languages_are_named_by_any_tag_and_only_by_known_ones() -> None:
    assert why(Language(["zh-TW"]), "今天天氣很好，我們一起去夜市吃東西吧！") is None
    with pytest.raises(UserError, match="finnish: "):
        Language(["finnish"])


def test_curly_apostrophes_hide_no_refusal() -> None:
    assert why(Refusals(), "I’m sorry, but I can’t assist with that.") == why(
        Refusals(), "I'm sorry, but I can't assist with that."
    )
    assert why(Refusals(), "I’m an AI language model.") == "says it is a model"


def test_a_long_table_of_numbers_is_looked_through_in_a_moment() -> None:
    started = time.perf_counter()
    PersonalData().judge(candidate("7 " * 5_000))
    assert time.perf_counter() - started < 10


@pytest.mark.parametrize("region", ["fi", "Finland"])
def test_a_region_of_phone_numbers_that_does_not_exist_is_refused(region: str) -> None:
    with pytest.raises(UserError, match="not a region"):
        PersonalData(phone_regions=[region])
