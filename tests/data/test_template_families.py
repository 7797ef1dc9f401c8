"""What training text looks like in families of models whose templates do something unusual, written out."""

from dataclasses import replace
from pathlib import Path

import pytest
from chat_templates import STYLES, Style, tokenizer_for
from transformers import GenerationConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from inscp.data.special_tokens import special_ids
from inscp.data.tagging import ConversationTagger, InsCPTagger, Tagger
from inscp.data.template import prompt_ids
from inscp.data.tokenization import tokenize
from inscp.errors import UserError
from inscp.records import IGNORED, Record, Role, Turn

TEXT = "The miller sleeps."
TALK: list[tuple[Role, str]] = [
    ("user", "Who is it?"),
    ("assistant", "The miller."),
    ("user", "Who will wake him?"),
    ("assistant", TEXT),
]
TURNS = [{"role": role, "content": text} for role, text in TALK]

_DEEPSEEK = """{{ bos_token }}
{%- for turn in messages %}
{%- if turn.role == 'user' %}{{ '<｜User｜>' + turn.content }}
{%- elif turn.role == 'assistant' %}
{{- '<｜Assistant｜>' + turn.content.split('</think>')[-1] + eos_token }}
{%- else %}{{ turn.content }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}"""
_DEEPSEEK_STYLE = Style(
    _DEEPSEEK,
    ("<｜end▁of▁sentence｜>", "<｜begin▁of▁sentence｜>"),
    "<｜end▁of▁sentence｜>",
    bos_token="<｜begin▁of▁sentence｜>",
    plain_tokens=("<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"),
)

_ZEPHYR = """
{%- for turn in messages %}
{{- '<|' + turn.role + '|>\n' + turn.content + eos_token + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"""

_REKA = """
{%- for turn in messages %}
{{- ('human: ' if turn.role == 'user' else 'assistant: ') + turn.content + ' <sep> ' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"""

_HARMONY = """
{%- for turn in messages %}
{%- if turn.role == 'assistant' %}
{{- '<|start|>assistant<|channel|>final<|message|>' + turn.content + ('<|return|>' if loop.last else '<|end|>') }}
{%- else %}{{ '<|start|>' + turn.role + '<|message|>' + turn.content + '<|end|>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"""

_APERTUS = """{{ bos_token }}
{%- for turn in messages %}
{%- if turn.role == 'user' %}{{ '<|user_start|>' + turn.content + '<|user_end|>' }}
{%- else %}{{ '<|assistant_start|>' + turn.content }}{% if not loop.last %}{{ '<|assistant_end|>' }}{% endif %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant_start|>' }}{% endif %}"""

_COMMAND_R7B = """{{ bos_token }}
{%- if messages[0].role != 'system' %}
{{- '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>Be safe.<|END_OF_TURN_TOKEN|>' }}
{%- endif %}
{%- for turn in messages %}
{{- '<|START_OF_TURN_TOKEN|>' + ('<|CHATBOT_TOKEN|>' if turn.role == 'assistant' else '<|USER_TOKEN|>') }}
{%- if turn.role == 'assistant' %}{{ '<|START_RESPONSE|>' + turn.content + '<|END_RESPONSE|>' }}
{%- else %}{{ turn.content }}{% endif %}
{{- '<|END_OF_TURN_TOKEN|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}"""
# As GLM-4.5's where nobody lets it reason: nothing closes an answer, which ends where the user's next turn opens.
_GLM = """[gMASK]<sop>
{%- for turn in messages %}
{%- if turn.role == 'assistant' %}{{ '<|assistant|>\n<think></think>\n' + turn.content }}
{%- elif turn.role == 'user' %}{{ '<|user|>\n' + turn.content + '/nothink' }}
{%- else %}{{ '<|system|>\n' + turn.content }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\n<think></think>\n' }}{% endif %}"""
_GLM_STYLE = Style(
    _GLM, ("<|user|>", "<|endoftext|>", "[gMASK]", "<sop>", "<|assistant|>", "<|system|>"), "<|endoftext|>"
)

_R7B_SYSTEM = "<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>Be safe.<|END_OF_TURN_TOKEN|>"
_R7B_USER = "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>"
_R7B_ANSWER = "<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>"
_R7B_END = "<|END_RESPONSE|><|END_OF_TURN_TOKEN|>"

# By name: the style, what a text becomes, and what a conversation of two rounds becomes.
FAMILIES: dict[str, tuple[Style, str, str]] = {
    "deepseek": (
        _DEEPSEEK_STYLE,
        f"<｜begin▁of▁sentence｜><｜User｜><｜Assistant｜>{TEXT}<｜end▁of▁sentence｜>",
        "<｜begin▁of▁sentence｜><｜User｜>Who is it?<｜Assistant｜>The miller.<｜end▁of▁sentence｜>"
        f"<｜User｜>Who will wake him?<｜Assistant｜>{TEXT}<｜end▁of▁sentence｜>",
    ),
    # Asked, it has begun to think; an answer comes when it has thought.
    "deepseek_r1": (
        replace(
            _DEEPSEEK_STYLE, template=_DEEPSEEK.replace("{{ '<｜Assistant｜>' }}", "{{ '<｜Assistant｜><think>\n' }}")
        ),
        "<｜begin▁of▁sentence｜><｜User｜><｜Assistant｜><think>\n\n</think>\n\n" + TEXT + "<｜end▁of▁sentence｜>",
        "<｜begin▁of▁sentence｜><｜User｜>Who is it?<｜Assistant｜>The miller.<｜end▁of▁sentence｜>"
        "<｜User｜>Who will wake him?<｜Assistant｜><think>\n\n</think>\n\n" + TEXT + "<｜end▁of▁sentence｜>",
    ),
    # The roles are text, and a SentencePiece tokenizer has another first word behind a line break.
    "zephyr": (
        Style(_ZEPHYR, ("</s>", "<s>"), "</s>", bos_token="<s>", adds_bos=True, spaces="legacy"),
        f"<|user|>\n</s>\n<|assistant|>\n{TEXT}</s>",
        "<|user|>\nWho is it?</s>\n<|assistant|>\nThe miller.</s>\n"
        f"<|user|>\nWho will wake him?</s>\n<|assistant|>\n{TEXT}</s>",
    ),
    "tiny_llama": (
        Style(_ZEPHYR, ("</s>", "<s>"), "</s>", bos_token="<s>", adds_bos=True, spaces="metaspace"),
        f"<|user|>\n</s>\n<|assistant|>\n{TEXT}</s>",
        "<|user|>\nWho is it?</s>\n<|assistant|>\nThe miller.</s>\n"
        f"<|user|>\nWho will wake him?</s>\n<|assistant|>\n{TEXT}</s>",
    ),
    # The space ahead of a text is part of its first token.
    "reka": (
        Style(_REKA, ("<sep>", "<|endoftext|>"), "<|endoftext|>"),
        f"human:  <sep> assistant: {TEXT} <sep>",
        f"human: Who is it? <sep> assistant: The miller. <sep> human: Who will wake him? <sep> assistant: {TEXT} <sep>",
    ),
    # The response has an end, and so has the turn.
    "command_r7b": (
        Style(
            _COMMAND_R7B,
            (
                "<|END_OF_TURN_TOKEN|>",
                "<BOS_TOKEN>",
                "<|START_OF_TURN_TOKEN|>",
                "<|SYSTEM_TOKEN|>",
                "<|USER_TOKEN|>",
                "<|CHATBOT_TOKEN|>",
                "<|START_RESPONSE|>",
                "<|END_RESPONSE|>",
            ),
            "<|END_OF_TURN_TOKEN|>",
            bos_token="<BOS_TOKEN>",
            adds_bos=True,
            has_default_system=True,
        ),
        f"<BOS_TOKEN>{_R7B_SYSTEM}{_R7B_USER}{_R7B_ANSWER}{TEXT}{_R7B_END}",
        f"<BOS_TOKEN>{_R7B_SYSTEM}{_R7B_USER}Who is it?{_R7B_ANSWER}The miller.{_R7B_END}"
        f"{_R7B_USER}Who will wake him?{_R7B_ANSWER}{TEXT}{_R7B_END}",
    ),
    # The last answer of all ends otherwise than the others.
    "gpt_oss": (
        Style(
            _HARMONY,
            ("<|return|>", "<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|endoftext|>"),
            "<|return|>",
        ),
        f"<|start|>user<|message|><|end|><|start|>assistant<|channel|>final<|message|>{TEXT}<|return|>",
        "<|start|>user<|message|>Who is it?<|end|><|start|>assistant<|channel|>final<|message|>The miller.<|end|>"
        "<|start|>user<|message|>Who will wake him?<|end|><|start|>assistant<|channel|>final<|message|>"
        f"{TEXT}<|return|>",
    ),
    # The last answer is left open, and closed once another turn follows.
    "apertus": (
        Style(
            _APERTUS,
            ("<|assistant_end|>", "<s>", "<|user_start|>", "<|user_end|>", "<|assistant_start|>"),
            "<|assistant_end|>",
            bos_token="<s>",
            adds_bos=True,
        ),
        f"<s><|user_start|><|user_end|><|assistant_start|>{TEXT}<|assistant_end|>",
        "<s><|user_start|>Who is it?<|user_end|><|assistant_start|>The miller.<|assistant_end|>"
        f"<|user_start|>Who will wake him?<|user_end|><|assistant_start|>{TEXT}<|assistant_end|>",
    ),
}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def tagged(tagger: Tagger, tokenizer: PreTrainedTokenizerBase, *turns: tuple[Role, str]) -> list[int]:
    record = Record("here:1", tuple(Turn(role, text) for role, text in turns))
    (sequence,) = tokenize(tagger.bind(tokenizer)(record), tokenizer, 4096, lambda *_: None)
    return list(map(int, sequence.input_ids))


def whole(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_a_text_has_the_tokens_that_the_template_s_own_output_has(family: str) -> None:
    style, expected, _ = FAMILIES[family]
    tokenizer = tokenizer_for(style)
    assert tagged(InsCPTagger(), tokenizer, ("document", TEXT)) == whole(tokenizer, expected)
    bare = expected.replace(_R7B_SYSTEM, "")
    assert tagged(InsCPTagger(system="none"), tokenizer, ("document", TEXT)) == whole(tokenizer, bare)


def test_a_conversation_has_the_tokens_that_the_template_s_own_output_has(family: str) -> None:
    style, _, expected = FAMILIES[family]
    tokenizer = tokenizer_for(style)
    assert tagged(ConversationTagger(), tokenizer, *TALK) == whole(tokenizer, expected)


def test_the_model_is_asked_where_its_answer_was_trained_to_begin(family: str) -> None:
    style, _, expected = FAMILIES[family]
    tokenizer = tokenizer_for(style)
    asked, answered = prompt_ids(tokenizer, TURNS[:-1]), whole(tokenizer, expected)
    assert answered[: len(asked)] == asked


def test_an_answer_ends_where_the_next_turn_opens_if_that_is_where_the_model_stops(tmp_path: Path) -> None:
    alone = tokenizer_for(_GLM_STYLE)
    with pytest.raises(UserError, match="ends the assistant's turn with no special token"):
        tagged(InsCPTagger(), alone, ("document", TEXT))
    alone.save_pretrained(tmp_path)
    ends: list[int] = [int(alone.convert_tokens_to_ids(name)) for name in ("<|endoftext|>", "<|user|>")]
    GenerationConfig(eos_token_id=ends).save_pretrained(tmp_path)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    text = f"[gMASK]<sop><|user|>\n/nothink<|assistant|>\n<think></think>\n{TEXT}<|user|>"
    for system in ("template", "none"):
        assert tagged(InsCPTagger(system=system), tokenizer, ("document", TEXT)) == whole(tokenizer, text)
    talk = (
        "[gMASK]<sop><|user|>\nWho is it?/nothink<|assistant|>\n<think></think>\nThe miller."
        f"<|user|>\nWho will wake him?/nothink<|assistant|>\n<think></think>\n{TEXT}<|user|>"
    )
    assert tagged(ConversationTagger(), tokenizer, *TALK) == whole(tokenizer, talk)
    record = Record("here:1", tuple(Turn(role, text) for role, text in TALK))
    (sequence,) = tokenize(ConversationTagger().bind(tokenizer)(record), tokenizer, 4096, lambda *_: None)
    assert tokenizer.decode(sequence.labels[sequence.labels != IGNORED]) == f"The miller.<|user|>{TEXT}<|user|>"


def test_names_that_only_a_template_writes_stay_text_though_nobody_calls_them_special() -> None:
    tokenizer = tokenizer_for(FAMILIES["deepseek_r1"][0])
    names = ["<think>", "</think>", "<｜User｜>", "<｜Assistant｜>"]
    ids = {int(tokenizer.convert_tokens_to_ids(name)) for name in names}
    assert not ids & special_ids(tokenizer)
    said = " and ".join(names)
    bare, named = (
        [
            index
            for index in tagged(ConversationTagger(), tokenizer, ("user", text), ("assistant", text))
            if index in ids
        ]
        for text in (TEXT, said)
    )
    assert bare == named
    asked = prompt_ids(tokenizer, [{"role": "user", "content": said}])
    assert [index for index in asked if index in ids] == [index for index in bare if index in asked]
    assert tokenizer.decode(asked).count(said) == 1


def test_a_template_that_leaves_an_empty_user_turn_out_asks_for_a_request() -> None:
    template = STYLES["chatml"].template.replace(
        "{%- for turn in messages %}", "{%- for turn in messages if turn.content %}"
    )
    tokenizer = tokenizer_for(replace(STYLES["chatml"], template=template))
    with pytest.raises(UserError, match=r"omits an empty user turn. Set data\.tagger\.user\."):
        tagged(InsCPTagger(), tokenizer, ("document", TEXT))
    assert "Who?" in tokenizer.decode(tagged(InsCPTagger(user="Who?"), tokenizer, ("document", TEXT)))


def test_a_system_text_may_be_a_switch_that_the_template_obeys() -> None:
    template = (
        "{%- set loud = messages[0].role == 'system' and messages[0].content == '/loud' %}"
        "{%- if loud %}{% set messages = messages[1:] %}<|im_start|>system\nAloud.<|im_end|>\n{% endif %}"
        + STYLES["chatml"].template.lstrip()
    )
    tokenizer = tokenizer_for(replace(STYLES["chatml"], template=template))
    ids = tagged(InsCPTagger(system="/loud"), tokenizer, ("document", TEXT))
    assert tokenizer.decode(ids).startswith("<|im_start|>system\nAloud.<|im_end|>\n<|im_start|>user\n")


@pytest.mark.parametrize("spaces", ["gpt_2", "cl100k"])
def test_line_breaks_before_ordinary_text_have_the_tokens_of_their_place(spaces: str) -> None:
    """GPT-2's tokenizer divides them from the text behind, and makes one token of two where nothing is."""
    template = """
    {%- for turn in messages %}
    {{- '### ' + turn.role + ':\n' + turn.content + ('<|end|>' if turn.role == 'assistant' else '') + '\n\n' }}
    {%- endfor %}
    {%- if add_generation_prompt %}{{ '### assistant:\n' }}{% endif %}"""
    tokenizer = tokenizer_for(Style(template, ("<|end|>",), "<|end|>", spaces=spaces))
    assert len(whole(tokenizer, "\n\n")) == 1
    rendered = str(tokenizer.apply_chat_template(TURNS, tokenize=False)).removesuffix("\n\n")
    assert tagged(ConversationTagger(), tokenizer, *TALK) == whole(tokenizer, rendered)
    asked = InsCPTagger(user="Who is it?")
    assert tagged(asked, tokenizer, ("document", TALK[1][1])) == whole(
        tokenizer, rendered.partition("\n\n### user:\nWho will")[0]
    )


def test_both_ends_of_an_answer_are_learned() -> None:
    tokenizer = tokenizer_for(FAMILIES["command_r7b"][0])
    record = Record("here:1", tuple(Turn(role, text) for role, text in TALK))
    (sequence,) = tokenize(ConversationTagger().bind(tokenizer)(record), tokenizer, 4096, lambda *_: None)
    learned = tokenizer.decode(sequence.labels[sequence.labels != IGNORED])
    assert learned == f"The miller.{_R7B_END}{TEXT}{_R7B_END}"
