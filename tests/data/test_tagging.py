"""What tagging promises, for every style of chat template."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from chat_templates import STYLES, Style, text_ids, tokenizer_for
from transformers import PreTrainedTokenizerBase
from transformers.utils import chat_template_utils

from inscp.data.rendering import render as render_pinned
from inscp.data.special_tokens import special_ids
from inscp.data.tagging import ConversationTagger, InsCPTagger, PlainTagger, Tagger
from inscp.data.template import ChatTemplate, prompt_ids
from inscp.data.tokenization import tokenize
from inscp.errors import UserError
from inscp.paths import local_path
from inscp.records import IGNORED, Record, Role, TextSpan, TokenSequence, Turn

SIMPLE = "The miller sleeps."
TEXTS = [
    SIMPLE,
    "  two spaces ahead, a line break behind \n",
    "\n\n春眠不覺曉，處處聞啼鳥。\n",
    "\tمرحبا بالعالم 👩‍👩‍👧 e\u0301 ",
    "a\r\nb\u00a0c\u3000d",
]
SYSTEM = "Answer in Finnish."


@pytest.fixture(params=STYLES)
def style(request: pytest.FixtureRequest) -> Style:
    return STYLES[request.param]


@pytest.fixture
def tokenizer(style: Style) -> PreTrainedTokenizerBase:
    return tokenizer_for(style)


def document(text: str) -> Record:
    return Record("here:1", (Turn("document", text),))


def conversation(*turns: tuple[Role, str]) -> Record:
    return Record("here:1", tuple(Turn(role, text) for role, text in turns))


def sequences(tagger: Tagger, tokenizer: PreTrainedTokenizerBase, record: Record) -> list[TokenSequence]:
    def refuse(source: str, reason: str) -> None:
        raise AssertionError(f"{source} left out: {reason}")

    return list(tokenize(tagger.bind(tokenizer)(record), tokenizer, 4096, refuse))


def ids_of(tagger: Tagger, tokenizer: PreTrainedTokenizerBase, record: Record) -> list[int]:
    (sequence,) = sequences(tagger, tokenizer, record)
    return sequence.input_ids.tolist()


def targets_of(tagger: Tagger, tokenizer: PreTrainedTokenizerBase, record: Record) -> list[bool]:
    (sequence,) = sequences(tagger, tokenizer, record)
    is_target = sequence.labels != IGNORED
    assert (sequence.labels[is_target] == sequence.input_ids[is_target]).all()
    return is_target.tolist()


def around_text(
    tagger: Tagger, tokenizer: PreTrainedTokenizerBase, text: str
) -> tuple[list[int], list[int], list[int]]:
    """The sequence's ids before, of and after the text."""
    ids, before = ids_of(tagger, tokenizer, document(text)), len(ChatTemplate(tokenizer).before_assistant().ids)
    after = len(ids) - len(ChatTemplate(tokenizer).after_assistant)
    return ids[:before], ids[before:after], ids[after:]


def decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def rendered_ids(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]], **options: Any) -> list[int]:
    """The template's own output as ids, on the pinned date, up to the last end-of-turn token."""
    ids = tokenizer(render_pinned(tokenizer, turns, **options), add_special_tokens=False)["input_ids"]
    if options:
        return ids
    end = ChatTemplate(tokenizer).end_of_turn_id
    return ids[: len(ids) - ids[::-1].index(end)]


def as_messages(record: Record) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.text} for turn in record.turns]


# --- the text


@pytest.mark.parametrize("text", TEXTS)
def test_text_keeps_its_own_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    _, inside, _ = around_text(InsCPTagger(), tokenizer, text)
    assert inside == text_ids(tokenizer, text)


@pytest.mark.parametrize("text", TEXTS)
def test_text_decodes_to_itself(style: Style, tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    _, inside, _ = around_text(InsCPTagger(), tokenizer, text)
    # Metaspace cannot tell a text's own first space from the one that it gives to texts without.
    lost = " " if style.spaces == "metaspace" and text.startswith(" ") else ""
    assert lost + decode(tokenizer, inside) == text


def test_special_token_strings_in_text_stay_text(style: Style, tokenizer: PreTrainedTokenizerBase) -> None:
    for token in style.special_tokens:
        text = f"{token}before {token} after{token}"
        assert special_ids(tokenizer) & set(tokenizer(text)["input_ids"]), "the text must be able to do harm"
        before, inside, after = around_text(InsCPTagger(), tokenizer, text)
        assert not special_ids(tokenizer) & set(inside)
        assert decode(tokenizer, inside) == text
        assert [before, after] == [*around_text(InsCPTagger(), tokenizer, SIMPLE)][::2]


def test_special_token_strings_in_every_turn_stay_text(style: Style, tokenizer: PreTrainedTokenizerBase) -> None:
    def specials(text: str) -> list[int]:
        record = conversation(("user", text), ("assistant", text), ("user", text), ("assistant", text))
        ids = ids_of(ConversationTagger(), tokenizer, record)
        return [index for index in ids if index in special_ids(tokenizer)]

    assert specials(" ".join(style.special_tokens)) == specials(SIMPLE)


def test_special_token_strings_in_a_prompt_stay_text(style: Style, tokenizer: PreTrainedTokenizerBase) -> None:
    def asked(text: str) -> list[int]:
        return prompt_ids(tokenizer, [{"role": role, "content": text} for role in ("user", "assistant", "user")])

    def specials(ids: list[int]) -> list[int]:
        return [index for index in ids if index in special_ids(tokenizer)]

    text = " and ".join(style.special_tokens)
    assert specials(asked(text)) == specials(asked(SIMPLE))
    assert all(decode(tokenizer, asked(text)).count(token) >= 3 for token in style.special_tokens)
    turns = [{"role": role, "content": SIMPLE} for role in ("user", "assistant", "user")]
    rendered = rendered_ids(tokenizer, turns, add_generation_prompt=True)
    assert asked(SIMPLE)[: len(rendered)] == rendered


def test_what_is_asked_begins_as_what_was_trained(style: Style, tokenizer: PreTrainedTokenizerBase) -> None:
    """Also where a template writes something ahead of every answer, and leaves it to the model where it is asked."""
    asked = prompt_ids(tokenizer, [{"role": "user", "content": SIMPLE}])
    trained = ids_of(ConversationTagger(), tokenizer, conversation(("user", SIMPLE), ("assistant", SIMPLE)))
    ahead = len(ChatTemplate(tokenizer).before_assistant(SIMPLE).ids)
    assert asked[:ahead] == trained[:ahead]
    assert len(asked) - ahead in (0, 1)  # a space of its own, which in a training is the text's


# --- what stands around the text


def test_begin_of_sequence_as_often_as_the_template_has_it(style: Style, tokenizer: PreTrainedTokenizerBase) -> None:
    begin = tokenizer.bos_token_id
    ids = ids_of(InsCPTagger(), tokenizer, document(SIMPLE))
    turns = [{"role": "user", "content": ""}, {"role": "assistant", "content": SIMPLE}]
    assert ids.count(begin) == (rendered_ids(tokenizer, turns).count(begin) if begin else 0)
    if style.uses_bos:
        bare = ids_of(InsCPTagger(system="none"), tokenizer, document(SIMPLE))
        assert ids[0] == bare[0] == begin
        assert ids.count(begin) == bare.count(begin) == 1
        again = tokenizer(decode(tokenizer, ids))["input_ids"]
        assert again.count(begin) == 2, "the tokenizer must be able to double it"


@pytest.mark.parametrize("loss", ["all", "response"])
def test_ends_with_the_end_of_turn_token_as_a_target(style: Style, tokenizer: PreTrainedTokenizerBase, loss) -> None:
    (sequence,) = sequences(InsCPTagger(loss=loss), tokenizer, document(SIMPLE))
    _, _, after = around_text(InsCPTagger(), tokenizer, SIMPLE)
    end = tokenizer.convert_tokens_to_ids(style.end_of_turn)
    assert after.count(end) == 1
    assert sequence.input_ids[-1] == end
    assert sequence.labels[-1] == end


def test_prefix_is_what_the_model_sees_when_it_answers(style: Style, tokenizer: PreTrainedTokenizerBase) -> None:
    before, _, _ = around_text(InsCPTagger(), tokenizer, SIMPLE)
    prompt = rendered_ids(tokenizer, [{"role": "user", "content": ""}], add_generation_prompt=True)
    assert before[: len(prompt)] == prompt
    # Qwen3 writes its empty thinking block only around an answer that is there.
    assert decode(tokenizer, before[len(prompt) :]) == ("<think>\n\n</think>\n\n" if style.thinks else "")


def test_rendering_is_the_template_s_own(tokenizer: PreTrainedTokenizerBase) -> None:
    turns = [{"role": "user", "content": ""}, {"role": "assistant", "content": SIMPLE}]
    assert ids_of(InsCPTagger(), tokenizer, document(SIMPLE)) == rendered_ids(tokenizer, turns)


def test_a_request_stands_in_the_user_s_turn_as_the_template_has_it(tokenizer: PreTrainedTokenizerBase) -> None:
    turns = [{"role": "user", "content": "請寫一段話。"}, {"role": "assistant", "content": SIMPLE}]
    assert ids_of(InsCPTagger(user="請寫一段話。"), tokenizer, document(SIMPLE)) == rendered_ids(tokenizer, turns)
    targets = targets_of(InsCPTagger(user="請寫一段話。", loss="response"), tokenizer, document(SIMPLE))
    assert sum(targets) == sum(targets_of(InsCPTagger(loss="response"), tokenizer, document(SIMPLE)))


def test_every_request_is_drawn_and_each_text_has_its_own_always(tokenizer: PreTrainedTokenizerBase) -> None:
    requests, texts = ["One?", "Two?", "Three?"], [f"text {number}" for number in range(40)]
    tag = InsCPTagger(user=requests).bind(tokenizer)

    def drawn(text: str) -> str:
        ahead = decode(tokenizer, list(tag(document(text))[0].parts[0].ids))
        [request] = [request for request in requests if request in ahead]
        return request

    before = {text: drawn(text) for text in texts}
    assert set(before.values()) == set(requests)
    assert before == {text: drawn(text) for text in texts[::-1]}
    assert [before[text] for text in texts[:5]] == ["Three?", "Two?", "Three?", "Two?", "Three?"], "in every process"
    with pytest.raises(UserError, match="no prompt"):
        InsCPTagger(user=[]).bind(tokenizer)


def test_requests_may_stand_in_a_file_and_what_is_cached_depends_on_what_it_says(tmp_path: Path) -> None:
    file = tmp_path / "requests.txt"
    file.write_text("Sano jotain.\n\n  Jatka.  \n", "utf-8")
    tagger = InsCPTagger(user=str(file))
    assert tagger == InsCPTagger(user=["Sano jotain.", "Jatka."])
    (tmp_path / "pyynnöt").write_text("Jatka.", "utf-8")
    assert InsCPTagger(user=str(tmp_path / "pyynnöt")).user == ["Jatka."]
    file.write_text("Jatka.\n", "utf-8")
    assert repr(InsCPTagger(user=str(file))) != repr(tagger)
    with pytest.raises(UserError, match=r"data\.tagger\.user: .*none\.txt cannot be read"):
        InsCPTagger(user=str(tmp_path / "none.txt"))
    with pytest.raises(UserError, match=r"no such sample.*requests/fi\.txt"):
        InsCPTagger(user="samples:requests/nowhere.txt")


def test_the_shipped_requests_are_eight_different_ones_a_language() -> None:
    files = sorted(local_path("samples:requests/fi.txt").parent.glob("*.txt"))
    said = [InsCPTagger(user=f"samples:requests/{file.name}").user for file in files]
    assert len(said) > 10
    assert all(len(set(requests)) == 8 for requests in said)


@pytest.fixture
def another_day(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime(2031, 12, 24, tzinfo=tz)

    monkeypatch.setattr(chat_template_utils, "datetime", Later)


def test_same_ids_on_another_day(style: Style, tokenizer: PreTrainedTokenizerBase, request) -> None:
    taggers = [InsCPTagger(), InsCPTagger(system="none"), ConversationTagger()]
    record = conversation(("user", "Who?"), ("assistant", SIMPLE))

    def everything() -> list[list[int]]:
        return [sequence.input_ids.tolist() for tagger in taggers for sequence in sequences(tagger, tokenizer, record)]

    today, rendered_today = everything(), tokenizer.apply_chat_template(as_messages(record), tokenize=False)
    request.getfixturevalue("another_day")
    rendered_later = tokenizer.apply_chat_template(as_messages(record), tokenize=False)
    assert ("2031" in rendered_later) == (rendered_later != rendered_today) == ("strftime_now" in style.template)
    assert everything() == today


@pytest.mark.parametrize("form", ["%d %b %Y", "%B %-d, %Y", "%-d.%-m.%y", "%Y-%m-%d %H:%M", "%A", "%I:%M %p"])
def test_pinned_date_in_any_format(chatml_tokenizer: PreTrainedTokenizerBase, form: str) -> None:
    pinned = datetime(2024, 7, 26).strftime(form)
    chatml_tokenizer.chat_template = "{{ strftime_now(" + repr(form) + ") }}; {{ date_string }}"
    assert render_pinned(chatml_tokenizer, [{"role": "user", "content": "x"}]) == f"{pinned}; 26 Jul 2024"


@pytest.mark.parametrize("begin", ["\n", "\n\n", "  ", "  {% if true %}x{% endif %}", "\n{%- if true %}x{% endif %}"])
def test_pinning_the_date_changes_nothing_else(chatml_tokenizer: PreTrainedTokenizerBase, begin: str) -> None:
    chatml_tokenizer.chat_template = begin + "{{ messages[0].content }}"
    turns = [{"role": "user", "content": "x"}]
    assert render_pinned(chatml_tokenizer, turns) == chatml_tokenizer.apply_chat_template(turns, tokenize=False)


# --- the loss


def test_loss_on_all_labels_every_token(tokenizer: PreTrainedTokenizerBase) -> None:
    assert all(targets_of(InsCPTagger(loss="all"), tokenizer, document(SIMPLE)))


def test_loss_on_response_labels_text_and_end_of_turn(tokenizer: PreTrainedTokenizerBase) -> None:
    before, inside, after = around_text(InsCPTagger(), tokenizer, SIMPLE)
    targets = targets_of(InsCPTagger(loss="response"), tokenizer, document(SIMPLE))
    assert targets == [False] * len(before) + [True] * len(inside + after)


# --- pairs and system turns


@pytest.mark.parametrize("tagger", [InsCPTagger, PlainTagger])
def test_pairs_are_split_or_joined(chatml_tokenizer: PreTrainedTokenizerBase, tagger) -> None:
    pair = conversation(("system", SYSTEM), ("user", "Who?"), ("assistant", "I."))
    split, join = (tagger(pairs=pairs).bind(chatml_tokenizer)(pair) for pairs in ("split", "join"))
    assert [tagged.text for tagged in split] == ["Who?", "I."]
    assert [tagged.text for tagged in join] == ["Who?\n\nI."]
    assert {tagged.parts[0] for tagged in split} == {join[0].parts[0]}


def test_system_none_removes_the_default_system_turn(style: Style, tokenizer: PreTrainedTokenizerBase) -> None:
    bare = ids_of(InsCPTagger(system="none"), tokenizer, document(SIMPLE))
    default = ids_of(InsCPTagger(), tokenizer, document(SIMPLE))
    assert (bare != default) == style.has_default_system
    assert "system" not in decode(tokenizer, bare)


@pytest.mark.parametrize(
    ("with_system", "without"),
    [("qwen_2_5", "chatml"), ("smollm_2", "chatml"), ("llama_3_1", "llama_3"), ("llama_3_2", "llama_3")],
)
@pytest.mark.parametrize("turns", [1, 2, 4])
def test_system_none_gives_the_plain_style(with_system: str, without: str, turns: int) -> None:
    record = conversation(*[("user", "Who?"), ("assistant", SIMPLE)] * 2)
    record = document(SIMPLE) if turns == 1 else Record(record.source, record.turns[:turns])
    tagger = InsCPTagger if turns == 1 else ConversationTagger
    bare = ids_of(tagger(system="none"), tokenizer_for(STYLES[with_system]), record)
    assert bare == ids_of(tagger(), tokenizer_for(STYLES[without]), record)


def test_another_end_of_the_last_answer_is_no_hindrance_and_a_system_text_that_gets_lost_is_an_error() -> None:
    last = "{%- if turn.role == 'assistant' and loop.last %}<|endoftext|>{% else %}<|im_end|>\n{% endif %}"
    tokenizer = tokenizer_for(STYLES["chatml"])
    tokenizer.chat_template = STYLES["chatml"].template.replace("+ '<|im_end|>\n' }}", "}}" + last)
    bare = decode(tokenizer, ids_of(InsCPTagger(system="none"), tokenizer, document(SIMPLE)))
    assert bare == f"<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n{SIMPLE}<|endoftext|>"
    tokenizer.chat_template = (
        "{%- if messages[0].role == 'system' and messages[-1].role == 'assistant' %}{% set messages = messages[1:] %}"
        "{% endif %}" + STYLES["chatml"].template
    )
    with pytest.raises(UserError, match="omits the system turn if the assistant speaks last"):
        InsCPTagger(system=SYSTEM).bind(tokenizer)(document(SIMPLE))


def test_a_prompt_that_the_template_refuses_is_an_error() -> None:
    turns = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": SIMPLE}]
    with pytest.raises(UserError, match="rejects the turns system/user"):
        prompt_ids(tokenizer_for(STYLES["gemma"]), turns)


@pytest.mark.parametrize("tagger", [InsCPTagger(system=SYSTEM), ConversationTagger(system=SYSTEM)])
def test_given_system_text_appears_once(style: Style, tokenizer: PreTrainedTokenizerBase, tagger: Tagger) -> None:
    record = conversation(("user", "Who?"), ("assistant", SIMPLE))
    if not style.takes_system:
        with pytest.raises(UserError, match=r"system/user/assistant.*data\.tagger\.system"):
            tagger.bind(tokenizer)(record)
        return
    for sequence in sequences(tagger, tokenizer, record):
        whole = decode(tokenizer, sequence.input_ids.tolist())
        assert whole.count(SYSTEM) == 1
        assert "so they say" not in whole


# --- PlainTagger


def test_plain_is_begin_text_end(style: Style, tokenizer: PreTrainedTokenizerBase) -> None:
    ids = ids_of(PlainTagger(), tokenizer, document(SIMPLE))
    begin = [tokenizer.bos_token_id] if style.adds_bos else []
    assert ids[:-1] == begin + text_ids(tokenizer, SIMPLE)
    assert all(targets_of(PlainTagger(), tokenizer, document(SIMPLE)))


def test_plain_ends_with_another_token_than_a_turn_where_there_is_one(
    style: Style, tokenizer: PreTrainedTokenizerBase
) -> None:
    end = decode(tokenizer, ids_of(PlainTagger(), tokenizer, document(SIMPLE))[-1:])
    only_one = {"</s>", "<|end_of_text|>"} & {style.end_of_turn}
    assert end == style.end_of_turn if only_one else end in {"<|endoftext|>", "<|end_of_text|>", "<eos>"}


def test_plain_never_ends_with_the_end_of_a_turn_where_another_token_ends_documents() -> None:
    olmo = STYLES["olmo_2"]
    tokenizer = tokenizer_for(replace(olmo, special_tokens=(olmo.end_of_turn, "<eos>")))
    assert decode(tokenizer, ids_of(PlainTagger(), tokenizer, document(SIMPLE))[-1:]) == "<eos>"


def test_plain_end_of_document_can_be_named(chatml_tokenizer: PreTrainedTokenizerBase) -> None:
    tagger = PlainTagger(end_of_document="<|im_start|>")
    ids = ids_of(tagger, chatml_tokenizer, document(SIMPLE))
    assert ids[-1] == chatml_tokenizer.convert_tokens_to_ids("<|im_start|>")
    with pytest.raises(UserError, match=r"data\.tagger\.end_of_document"):
        PlainTagger(end_of_document="<|none|>").bind(chatml_tokenizer)


def test_plain_needs_no_chat_template(chatml_tokenizer: PreTrainedTokenizerBase) -> None:
    chatml_tokenizer.chat_template = None
    ids = ids_of(PlainTagger(), chatml_tokenizer, document(SIMPLE))
    assert ids == [*text_ids(chatml_tokenizer, SIMPLE), chatml_tokenizer.eos_token_id]


def test_plain_takes_a_chat_template_that_nobody_can_train_on(chatml_tokenizer: PreTrainedTokenizerBase) -> None:
    chatml_tokenizer.chat_template = "{% for turn in messages %}{{ turn.content }}\n{% endfor %}"
    ids = ids_of(PlainTagger(), chatml_tokenizer, document(SIMPLE))
    assert ids[:-1] == text_ids(chatml_tokenizer, SIMPLE)


# --- ConversationTagger

TALK: list[tuple[Role, str]] = [
    ("user", "Who is it?"),
    ("assistant", "The miller."),
    ("user", "Who will wake him?"),
    ("assistant", SIMPLE),
]


@pytest.mark.parametrize("system", [[], [("system", SYSTEM)]])
def test_conversation_is_the_template_s_own(style: Style, tokenizer: PreTrainedTokenizerBase, system) -> None:
    record = conversation(*system, *TALK)
    if system and not style.takes_system:
        with pytest.raises(UserError, match=r"rejects the turns system/user/assistant"):
            ids_of(ConversationTagger(), tokenizer, record)
        return
    ids, own = ids_of(ConversationTagger(), tokenizer, record), rendered_ids(tokenizer, as_messages(record))
    if system and style.spaces == "legacy":
        # Each text is tokenised by itself and so gets a leading space, which Llama-2's line breaks do not have.
        assert decode(tokenizer, ids).replace("\n ", "\n") == decode(tokenizer, own)
    else:
        assert ids == own
    assert decode(tokenizer, ids).count(SYSTEM) == len(system)


def test_conversation_loss_on_answers_and_their_ends(style: Style, tokenizer: PreTrainedTokenizerBase) -> None:
    talk = conversation(*[("system", SYSTEM)] * style.takes_system, *TALK)
    (sequence,) = sequences(ConversationTagger(), tokenizer, talk)
    runs = groupby(zip(sequence.input_ids.tolist(), sequence.labels.tolist(), strict=True), lambda x: x[1] != IGNORED)
    trained = [[label for _, label in run] for is_target, run in runs if is_target]
    end = list(ChatTemplate(tokenizer).after_assistant)
    assert trained == [text_ids(tokenizer, text) + end for role, text in TALK if role == "assistant"]
    assert all(targets_of(ConversationTagger(loss="all"), tokenizer, talk))


def test_a_line_break_after_an_answer_is_no_part_of_its_last_token() -> None:
    """As behind a question, where the model is asked; what closes an answer the model writes itself."""
    tokenizer = tokenizer_for(STYLES["olmo_2"])
    tokenizer.chat_template = (
        "{% for t in messages %}{{ '<|' + t.role + '|>' + t.content + '\n' + eos_token }}{% endfor %}"
    )
    ids = ids_of(ConversationTagger(), tokenizer, conversation(*TALK))
    for answer in ("The miller.", SIMPLE):
        said = [*text_ids(tokenizer, answer), *ChatTemplate(tokenizer).after_assistant]
        assert said in [ids[place : place + len(said)] for place in range(len(ids))]


def test_conversation_drops_what_follows_the_last_answer(tokenizer: PreTrainedTokenizerBase) -> None:
    whole = conversation(*TALK)
    longer = conversation(*TALK, ("user", "And then?"))
    assert ids_of(ConversationTagger(), tokenizer, longer) == ids_of(ConversationTagger(), tokenizer, whole)


def test_conversation_keeps_its_own_system_turn(chatml_tokenizer: PreTrainedTokenizerBase) -> None:
    record = conversation(("system", SYSTEM), *TALK)
    for system in ("template", "none", "Another system."):
        tagged = ConversationTagger(system=system).bind(chatml_tokenizer)(record)
        assert [part.text for part in tagged[0].parts if isinstance(part, TextSpan)] == [t.text for t in record.turns]
        assert (
            decode(chatml_tokenizer, ids_of(ConversationTagger(system=system), chatml_tokenizer, record)).count(
                "system\n"
            )
            == 1
        )


def test_conversation_without_an_answer_is_an_error(chatml_tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(UserError, match=r"here:1: it has no assistant turn.*InsCPTagger"):
        ConversationTagger().bind(chatml_tokenizer)(document(SIMPLE))


# --- templates that cannot be trained on


def turns_of(content: str, end: str = "<|im_end|>") -> str:
    return f"{{% for turn in messages %}}<|im_start|>{{{{ turn.role }}}}\n{{{{ {content} }}}}{end}{{% endfor %}}"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, r"no chat template.*instruct version.*PlainTagger"),
        (turns_of("turn.content * 2"), r"renders the user turn .* 2 times"),
        (turns_of("'nothing'"), r"renders the user turn .* 0 times"),
        (turns_of("turn.content | upper"), r"renders the user turn .* 0 times"),
        (turns_of("turn.content", end="\n"), r"no special token.*end-of-turn token"),
        (turns_of("raise_exception('not today')"), r"rejects the turns user/assistant \(not today\)"),
        ("{% if %}", r"rejects the turns"),
    ],
)
def test_unusable_template_is_an_error(chatml_tokenizer: PreTrainedTokenizerBase, template, message: str) -> None:
    chatml_tokenizer.chat_template = template
    for tagger in (InsCPTagger(), ConversationTagger()):
        with pytest.raises(UserError, match=message):
            tagger.bind(chatml_tokenizer)


def test_answer_without_an_end_inside_a_conversation_is_an_error(chatml_tokenizer: PreTrainedTokenizerBase) -> None:
    chatml_tokenizer.chat_template = (
        "{% for turn in messages %}[{{ turn.role }}]{{ turn.content }}{% endfor %}"
        "{{ '[assistant]' if add_generation_prompt else eos_token }}"
    )
    assert ids_of(ConversationTagger(), chatml_tokenizer, conversation(*TALK[:2]))
    with pytest.raises(UserError, match="ends an answer inside a conversation without the end-of-turn token"):
        ids_of(ConversationTagger(), chatml_tokenizer, conversation(*TALK))
    with pytest.raises(UserError, match="closes only the last answer"):
        ids_of(InsCPTagger(system="none"), chatml_tokenizer, document(SIMPLE))


def test_a_record_in_which_only_the_system_speaks_is_reported(tmp_path: Path) -> None:
    only = Record("a:1", (Turn("system", "Be kind."),))
    for tagger in (InsCPTagger(), InsCPTagger(pairs="join"), PlainTagger()):
        with pytest.raises(UserError, match="a:1: it has only a system turn"):
            tagger.bind(tokenizer_for(STYLES["chatml"]))(only)
