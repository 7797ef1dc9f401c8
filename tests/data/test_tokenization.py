"""Long documents become several tagged parts, and nothing of them is lost."""

import random
import re
from itertools import chain
from types import SimpleNamespace
from typing import Any

import pytest
import regex
from chat_templates import STYLES, text_ids, tokenizer_for
from tokenizers import normalizers, processors
from transformers import PreTrainedTokenizerBase

from inscp.data import batching
from inscp.data.splitting import split
from inscp.data.tagging import ConversationTagger, InsCPTagger, PlainTagger, Tagger
from inscp.data.tokenization import tokenize
from inscp.errors import UserError
from inscp.records import IGNORED, Record, TokenSequence, Turn

_CHARACTERS = [
    *"the river runs past old mills, who will wake him? Nobody! 河水流過古老的磨坊。誰會叫醒他？龘𠮷",
    *"يمر النهر بجانب الطاحونة؟ नदी पुरानी चक्की। \n\n\t\u3000",
    *("é", "e\u0301", "o\u0308\u0323", "👩\u200d👩\u200d👧", "🇫🇮", "👍🏽", "🌊", " \u00a0", "<|im_end|>", "</s>"),
]


def random_text(seed: int, length: int = 400) -> str:
    return "".join(random.Random(seed).choices(_CHARACTERS, k=length))


@pytest.fixture(params=["chatml", "chatml trimmed", "chatml composed", "llama_3", "mistral", "llama_2"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    name, _, variant = request.param.partition(" ")
    tokenizer = tokenizer_for(STYLES[name])
    if variant == "trimmed":  # GPT-2's way: the offsets of a word leave its space out
        tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    if variant == "composed":  # Qwen2.5's way: NFC joins letters and their accents
        tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def refuse(source: str, reason: str) -> None:
    raise AssertionError(f"{source} left out: {reason}")


def record(*texts: str, source: str = "here:1") -> Record:
    roles: Any = ("document",) if len(texts) == 1 else ("user", "assistant") * len(texts)
    return Record(source, tuple(Turn(role, text) for role, text in zip(roles, texts, strict=False)))


def parts_of(
    text: str, tokenizer: PreTrainedTokenizerBase, row_length: int, tagger: Tagger | None = None
) -> list[TokenSequence]:
    tagged = (tagger or InsCPTagger()).bind(tokenizer)(record(text))
    return list(tokenize(tagged, tokenizer, row_length, refuse))


def around(tokenizer: PreTrainedTokenizerBase, tagger: Tagger | None = None) -> tuple[list[int], list[int]]:
    """The ids that stand before and after any text."""
    prefix, _, suffix = (tagger or InsCPTagger()).bind(tokenizer)(record(""))[0].parts
    return list(prefix.ids), list(suffix.ids)


def texts_in(parts: list[TokenSequence], before: list[int], after: list[int]) -> list[list[int]]:
    return [part.input_ids[len(before) : len(part.input_ids) - len(after)].tolist() for part in parts]


def together(tokenizer: PreTrainedTokenizerBase, texts: list[list[int]]) -> str:
    """What texts say without their white space, of which that between two pieces is left out."""
    return "".join("".join(tokenizer.batch_decode(texts, clean_up_tokenization_spaces=False)).split())


@pytest.mark.parametrize("seed", range(8))
def test_long_document_loses_nothing_and_every_part_is_tagged(tokenizer: PreTrainedTokenizerBase, seed: int) -> None:
    text, room = random_text(seed), random.Random(seed).randint(5, 90)
    for tagger in (InsCPTagger(loss="response"), PlainTagger()):
        before, after = around(tokenizer, tagger)
        row_length = len(before) + room + len(after)
        parts = parts_of(text, tokenizer, row_length, tagger)
        assert len(parts) > 3
        assert together(tokenizer, texts_in(parts, before, after)) == together(tokenizer, [text_ids(tokenizer, text)])
        for number, part in enumerate(parts, 1):
            ids = part.input_ids.tolist()
            assert (part.part, part.parts, part.source) == (number, len(parts), "here:1")
            assert len(before) + len(after) < len(ids) <= row_length
            assert ids[: len(before)] == before
            assert ids[len(ids) - len(after) :] == after
            free = len(before) if isinstance(tagger, InsCPTagger) else 0
            assert part.labels.tolist() == [IGNORED] * free + ids[free:]


@pytest.mark.parametrize("seed", range(8))
def test_no_part_ends_inside_a_character(tokenizer: PreTrainedTokenizerBase, seed: int) -> None:
    text, (before, after) = random_text(seed), around(tokenizer)
    inside_a_character = 0
    for room in range(5, 40):
        parts = parts_of(text, tokenizer, len(before) + room + len(after))
        decoded = tokenizer.batch_decode(texts_in(parts, before, after), clean_up_tokenization_spaces=False)
        assert "\ufffd" not in "".join(decoded)
        inside_a_character += "\ufffd" in tokenizer.decode(text_ids(tokenizer, text)[:room])
    assert inside_a_character, "the text must have places where a split would do harm"


def test_a_character_that_no_row_holds_is_divided(tokenizer: PreTrainedTokenizerBase) -> None:
    text, (before, after) = "🌊" * 5, around(tokenizer)
    parts = parts_of(text, tokenizer, len(before) + 2 + len(after))
    assert all(len(ids) <= 2 for ids in texts_in(parts, before, after))
    assert list(chain(*texts_in(parts, before, after))) == text_ids(tokenizer, text)


@pytest.mark.parametrize(
    "end", ["。", "！", "? ", "\n", ". ", "؟ ", "। ", "۔ ", "። ", "။ ", "。」", ".” ", "… ", "!) "]
)
def test_parts_begin_and_end_with_a_sentence(tokenizer: PreTrainedTokenizerBase, end: str) -> None:
    text, (before, after) = f"the old mill, 3.5 m, U.S. bank{end}" * 20, around(tokenizer)
    text = text.rstrip(" ")
    sentence = len(text_ids(tokenizer, text)) // 20
    parts = parts_of(text, tokenizer, len(before) + 3 * sentence + sentence // 2 + len(after))
    assert len(parts) > 5
    for said in tokenizer.batch_decode(texts_in(parts, before, after)):
        assert said.strip(" ") == said or said[0] == " ", "SentencePiece has a space before every text"
        assert said.lstrip(" ").startswith("the old mill")
        assert said.endswith(end.strip())


def test_without_a_sentence_end_a_part_ends_with_a_clause_or_word(tokenizer: PreTrainedTokenizerBase) -> None:
    before, after = around(tokenizer)
    for text in ("the old mill " * 30, "古老的磨坊，" * 30, "طاحونة، " * 30):
        words = set(text.split()) | {text}
        parts = parts_of(text, tokenizer, len(before) + 37 + len(after))
        said = tokenizer.batch_decode(texts_in(parts, before, after))
        assert len(said) > 2
        assert all(one.split()[0] in words or one.startswith("古老的磨坊，") for one in said)
        assert all(one.split()[-1] in words or one.endswith("磨坊，") for one in said)


def said_of(text: str, room: int) -> list[str]:
    """The pieces of a text, each byte of which is a token."""
    places = [(place, place + 1) for place, character in enumerate(text) for _ in character.encode()]
    pieces = split(text, list(text.encode()), places, room, lambda word: list(word.encode()))
    return [bytes(piece).decode() for piece in pieces]


@pytest.mark.parametrize("room", [40, 64, 100])
def test_words_of_khmer_stay_whole_where_spaces_without_width_are_between_them(room: int) -> None:
    words = ["ប្រាសាទ", "អង្គរ", "ជា", "ដ៏", "ធំ", "បំផុត", "មួយ", "ក្នុង"] * 9
    pieces = said_of("\u200b".join(words), room)
    assert len(pieces) > 5
    assert [word for piece in pieces for word in piece.split("\u200b")] == words


@pytest.mark.parametrize("clause", ["ประเทศไทย", "ទន្លេ", "မြန်မာ", "河水流過"])
def test_where_no_spaces_are_between_words_a_clause_is_looked_for_in_all_of_the_room(clause: str) -> None:
    clauses = [clause, *[clause * 3] * 6]
    for end in (" ", "\u200b", "，", "។ "):
        room = len(end.join(clauses[:2]).encode()) - 1
        assert [piece.rstrip(end) for piece in said_of(end.join(clauses), room)] == clauses


@pytest.mark.parametrize(
    "word", ["ខ្ញុំ", "ស្ត្រី", "น้ำ", "ကြောင့်", "နိုင်ငံ", "क्षत्रिय", "e\u0301", "👩\u200d👩\u200d👧", "🇫🇮", "မြန်မာ"]
)
def test_no_part_ends_between_a_character_and_its_marks(word: str) -> None:
    characters = regex.findall(r"\X\p{M}*", word)
    longest = max(len(character.encode()) for character in characters)
    for room in range(2 * longest, 3 * longest):
        pieces = said_of(word * 20, room)
        assert [one for piece in pieces for one in regex.findall(r"\X\p{M}*", piece)] == characters * 20


def test_a_word_in_text_without_spaces_stays_whole() -> None:
    for room in range(40, 60):
        assert sum(piece.count("Python") for piece in said_of("河水流過古老的Python磨坊" * 5, room)) == 5


def test_parts_are_at_least_half_full_but_the_last_which_has_a_quarter() -> None:
    def lengths(text: str, room: int) -> list[int]:
        offsets = [(i, i + 1) for i in range(len(text))]
        return list(map(len, split(text, [ord(c) for c in text], offsets, room, lambda word: list(map(ord, word)))))

    assert lengths("a" * 100, 40) == [40, 40, 20]
    assert lengths("." + "a" * 99, 40) == [40, 40, 20], "an end in the first half would waste the row"
    assert lengths("a" * 29 + "." + "a" * 70, 40) == [40, 40, 20], "a point inside a word ends no sentence"
    assert lengths("a" * 28 + ". " + "a" * 70, 40) == [29, 40, 30]
    assert lengths("a" * 42, 40) == [32, 10]
    assert lengths("a. " + "a" * 97, 40)[0] == 40, "nor a part of two letters be one"
    assert lengths("a" * 40, 40) == [40]


def test_a_document_that_just_fits_is_one_part(tokenizer: PreTrainedTokenizerBase) -> None:
    text, (before, after) = random_text(0), around(tokenizer)
    needed = len(before) + len(text_ids(tokenizer, text)) + len(after)
    (whole,) = parts_of(text, tokenizer, needed)
    assert (len(whole.input_ids), whole.part, whole.parts) == (needed, 1, 1)
    assert len(parts_of(text, tokenizer, needed - 1)) == 2


def test_a_text_is_as_long_as_a_document_may_be_a_conversation_as_a_row(tokenizer: PreTrainedTokenizerBase) -> None:
    talk, short, text = record("Who? " * 9, "I. " * 9), record("Short."), record("The mill runs. " * 30)
    documents = [
        *ConversationTagger().bind(tokenizer)(talk),
        *chain(*map(InsCPTagger().bind(tokenizer), (short, text))),
    ]
    before, after = around(tokenizer)
    template = len(before) + len(after)
    limit = template + max(20, template)
    whole, one, *parts = tokenize(documents, tokenizer, 4096, refuse, document_length=limit)
    assert len(whole.input_ids) > limit >= len(one.input_ids), "a conversation that is longer, a text that is not"
    assert len(parts) > 3
    assert all(len(part.input_ids) <= limit for part in parts)
    assert together(tokenizer, texts_in(parts, before, after)) == "".join(text.turns[0].text.split())


def test_a_template_that_takes_most_of_a_document_is_an_error(tokenizer: PreTrainedTokenizerBase) -> None:
    documents, (before, after) = InsCPTagger().bind(tokenizer)(record("The mill runs. " * 30)), around(tokenizer)
    template = len(before) + len(after)
    assert len(list(tokenize(documents, tokenizer, 4096, refuse, document_length=2 * template))) > 3
    why = f"leaves {template - 1} of {2 * template - 1} tokens for text"
    mends = f"Give at least {2 * template}, or shorten what precedes the text (data.tagger.system: none)."
    with pytest.raises(UserError, match=re.escape(f"data.document_length: the chat template {why}. {mends}")):
        list(tokenize(documents, tokenizer, 4096, refuse, document_length=2 * template - 1))


def test_truncation_in_the_tokenizer_file_cuts_nothing(tokenizer: PreTrainedTokenizerBase) -> None:
    expected = parts_of(random_text(1), tokenizer, 4096)[0].input_ids.tolist()
    tokenizer.backend_tokenizer.enable_truncation(8)
    tokenizer.backend_tokenizer.enable_padding(length=8192)
    tokenizer.model_max_length = 8
    assert parts_of(random_text(1), tokenizer, 4096)[0].input_ids.tolist() == expected


def test_documents_keep_their_order_and_text_over_batches(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    tag = ConversationTagger().bind(tokenizer)
    talks = [record(*(random_text(10 * i + k, 20) for k in range(2 * (1 + i % 3))), source=f"a:{i}") for i in range(9)]
    documents = [tagged for talk in talks for tagged in tag(talk)]
    at_once = list(tokenize(documents, tokenizer, 4096, refuse))
    monkeypatch.setattr(batching, "_MAX_ITEMS", 2)
    in_batches = list(tokenize(iter(documents), tokenizer, 4096, refuse))
    one_by_one = [sequence for tagged in documents for sequence in tokenize([tagged], tokenizer, 4096, refuse)]
    assert [sequence.source for sequence in at_once] == [talk.source for talk in talks]
    for sequences in zip(at_once, in_batches, one_by_one, strict=True):
        assert len({(s.source, s.input_ids.tobytes(), s.labels.tobytes()) for s in sequences}) == 1


def test_too_long_a_conversation_is_reported_and_left_out(tokenizer: PreTrainedTokenizerBase) -> None:
    tag, left_out = ConversationTagger().bind(tokenizer), []
    talks = [record("Who?", "I.", source="a:1"), record("Who?", "I am. " * 99, source="a:2"), record("Who?", "You.")]
    documents = [tagged for talk in talks for tagged in tag(talk)]
    kept = list(tokenize(documents, tokenizer, 100, lambda source, reason: left_out.append((source, reason))))
    assert [sequence.source for sequence in kept] == ["a:1", "here:1"]
    assert left_out == [("a:2", "a conversation of more than 100 tokens, which cannot be split")]


def test_a_text_that_would_not_fit_into_memory_is_reported_and_left_out(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inscp.data.tokenization._MAX_CHARACTERS", 100)
    tag, told = InsCPTagger().bind(tokenizer), []
    documents = [*tag(record("a" * 101, source="long:1")), *tag(record("a" * 100, source="short:1"))]
    sequences = list(tokenize(documents, tokenizer, 256, lambda source, why: told.append((source, why))))
    assert {sequence.source for sequence in sequences} == {"short:1"}
    assert [(source, "text_unit: paragraph" in why) for source, why in told] == [("long:1", True)]


@pytest.mark.parametrize("room", [0, -3])
def test_row_too_short_for_the_template_is_an_error(tokenizer: PreTrainedTokenizerBase, room: int) -> None:
    before, after = around(tokenizer)
    with pytest.raises(UserError, match=r"data\.row_length: the chat template leaves .*system: none"):
        parts_of("A text.", tokenizer, len(before) + room + len(after))


def test_slow_tokenizer_is_an_error() -> None:
    slow: Any = SimpleNamespace(is_fast=False, name_or_path="some/model")
    with pytest.raises(UserError, match=r"some/model: it is a slow tokenizer.*tokenizer\.json"):
        list(tokenize([], slow, 8, refuse))
