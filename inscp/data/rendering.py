"""Conversations rendered by a tokenizer's chat template, with a pinned date and without reasoning."""

from contextlib import suppress
from datetime import datetime

from transformers import PreTrainedTokenizerBase

from inscp.errors import UserError
from inscp.pretrained import tokenizer_name

PINNED_DATE = datetime(2024, 7, 26)
"""The date given to templates that write one (the default in Llama-3.1's own template), so that the same input has the
same ids on every day."""

_ANSWER = "inscpanswer"
_DATE_CODES = {
    f"%{flag}{code}": PINNED_DATE.strftime(f"%{code}").removeprefix("0" if flag else "")
    for flag in ("-", "")
    for code in "aAbBcdHIjmMpSUwWxXyY"
}
_STRFTIME_NOW = (
    "{% macro strftime_now(format) %}{% set date = namespace(text=format) %}"
    f"{{% for code, value in {_DATE_CODES}.items() %}}"
    "{% set date.text = date.text.replace(code, value) %}"
    "{% endfor %}{{ date.text }}{% endmacro %}\n"
)
"""A macro before the template that shadows the function for today's date. Another function cannot be passed, because
transformers (5.23, `_plain_template_data`) passes plain data only. Jinja drops the final line break."""


def render(
    tokenizer: PreTrainedTokenizerBase,
    turns: list[dict[str, str]],
    add_generation_prompt: bool = False,
    continue_final_message: bool = False,
) -> str:
    """The conversation as rendered by the tokenizer's template, with the pinned date and without reasoning.

    With `enable_thinking=False`, templates like Qwen3's open an answer as they render one without reasoning, so that
    training documents and prompts begin alike; other templates ignore it.

    Args:
        tokenizer: with a chat template.
        turns: `role` and `content` of each turn.
        add_generation_prompt: end with the opening of the assistant's answer.
        continue_final_message: leave the last turn open.
    """
    return str(
        tokenizer.apply_chat_template(
            turns,
            chat_template=_STRFTIME_NOW + tokenizer.get_chat_template(),
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            date_string=PINNED_DATE.strftime("%d %b %Y"),
            enable_thinking=False,
        )
    )


def render_turns(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]], fix: str, **options: bool) -> str:
    """As `render`.

    Raises:
        UserError: the template rejects the turns.
    """
    try:
        return render(tokenizer, turns, **options)
    except Exception as error:  # a template may raise anything, including its own errors
        roles = "/".join(turn["role"] for turn in turns)
        what = f"its chat template rejects the turns {roles} ({error})"
        raise UserError(tokenizer_name(tokenizer), what, fix) from error


def may_reason(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the template has a switch for reasoning before the answer, which `render` turns off."""
    return "enable_thinking" in str(tokenizer.chat_template)


def require_chat_template(tokenizer: PreTrainedTokenizerBase, model: str = "", fix: str = "") -> None:
    """
    Args:
        tokenizer: the model's.
        model: the user's name for the model; by default the tokenizer's own.
        fix: another way to fix it.

    Raises:
        UserError: the tokenizer has no chat template.
    """
    if not tokenizer.chat_template:
        where = model or tokenizer_name(tokenizer)
        fix = f"Use the instruct version of the model{fix}."
        raise UserError(where, "it has no chat template, so this is not a chat model", fix)


def render_prompt(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]], fix: str) -> str:
    """The conversation up to the beginning of the assistant's answer.

    A reasoning block that the template opens there is closed. Text that the template writes before every answer but
    omits from a prompt (gpt-oss: the header of the final channel) is added.

    Raises:
        UserError: the template rejects the turns.
    """
    text = render_turns(tokenizer, turns, fix, add_generation_prompt=True)
    if text.rstrip().endswith("<think>"):
        text = f"{text.rstrip()}\n\n</think>\n\n"
    with suppress(Exception):  # a template may reject an answer here
        answered = render(tokenizer, [*turns, {"role": "assistant", "content": _ANSWER}])
        opened = answered.partition(_ANSWER)[0].rstrip(" ")  # a space belongs to the answer's first token
        if answered.count(_ANSWER) == 1 and opened.startswith(text) and opened[len(text) :].strip():
            return opened
    return text


def unrendered_opening(tokenizer: PreTrainedTokenizerBase) -> str:
    """What `render_prompt` adds before every answer, and prompts rendered by the template alone lack.

    For example the end of the reasoning that R1's template opens; empty for most templates, and without a template.
    """
    turns = [{"role": "user", "content": "…"}]
    with suppress(Exception):  # a template may reject them
        prompt, opened = render(tokenizer, turns, add_generation_prompt=True), render_prompt(tokenizer, turns, "")
        start = prompt if opened.startswith(prompt) else prompt.rstrip()  # as in `render_prompt`
        return opened.removeprefix(start) if opened.startswith(start) else ""
    return ""
