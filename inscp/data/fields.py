"""From a row's fields to turns: common shapes of text and instruction data, recognised by their field names.

The names are those in use on the Hub: Alpaca (instruction, input, output), Dolly (instruction, context, response),
ShareGPT (conversations: from, value), OpenAI (messages: role, content), dialogues (utterances: name, text).
"""

from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any

from inscp.data.rows import SURROGATE, BadRow, Row
from inscp.records import Role, Turn
from inscp.text.reasoning import after_reasoning

TURNS, USER, CONTEXT, ASSISTANT, TEXT = "turns", "user", "context", "assistant", "text"
SYSTEM, HISTORY = "system", "history"
CANONICAL = (TEXT, USER, CONTEXT, ASSISTANT, TURNS, SYSTEM, HISTORY)
"""The names in a `fields` mapping: {text: body}, {user: q, context: passage, assistant: a} or {turns: dialogue}. The
last two may add `system`, and a pair also `history`, the pairs before it. {user: q} alone is a prompt."""

_CONVERSATIONS = ("messages", "conversations", "conversation", "utterances", "turns", "dialogue", "dialog")
_PAIRS = (("instruction", ("output", "response", "answer")), ("question", ("answer", "response")),
          ("prompt", ("response", "completion", "answer", "output")))  # fmt: skip
_CONTEXTS = ("input", "context")
_DOCUMENTS = ("text", "content", "document", "body")

_ROLE_KEYS = ("role", "from", "name", "speaker")
_CONTENT_KEYS = ("content", "value", "text")
_ROLES: dict[str, Role] = {
    **dict.fromkeys(("system", "developer"), "system"),  # type: ignore[dict-item]
    **dict.fromkeys(("user", "human", "prompter", "customer"), "user"),  # type: ignore[dict-item]
    **dict.fromkeys(("assistant", "gpt", "bot", "model", "agent", "chatgpt"), "assistant"),  # type: ignore[dict-item]
}  # fmt: skip


_Spoken = tuple[Role, Any, str]
"""The speaker, the text and the name of its field."""


def find_fields(row: Row, requests: bool = False) -> dict[str, str] | None:
    """The roles of the row's fields: canonical name -> field name; None if no common shape fits.

    Args:
        row: as read by `read_rows`.
        requests: whether a prompt without an answer is accepted.
    """
    around = {name: name for name in (SYSTEM, HISTORY) if row.get(name)}
    for name in _CONVERSATIONS:
        if isinstance(row.get(name), list):
            return {TURNS: name} | ({SYSTEM: SYSTEM} if SYSTEM in around else {})
    if context := next((name for name in _CONTEXTS if name in row), None):
        around[CONTEXT] = context
    for user, answers in _PAIRS:
        answer = next((name for name in answers if name in row), None)
        if user in row and answer:
            return {USER: user, ASSISTANT: answer} | around
    if document := next((name for name in _DOCUMENTS if isinstance(row.get(name), str)), None):
        return {TEXT: document}
    request = next((user for user, _ in _PAIRS if user in row), None)
    return {USER: request} | around if requests and request else None


def to_turns(
    row: Row | BadRow, fields: Mapping[str, str] | None = None, requests: bool = False
) -> tuple[Turn, ...] | BadRow:
    """The row's turns, or why it has none.

    White space around a text is removed, as by most chat templates, and so is reasoning in think tags before an
    assistant's text: the model is trained and prompted without it.

    Args:
        row: as read by `read_rows`.
        fields: canonical name -> field name; found by `find_fields` if None.
        requests: as for `find_fields`.
    """
    if isinstance(row, BadRow):
        return row
    names = fields or find_fields(row, requests)
    if names is None:
        found = (f"{name} ({type(value).__name__})" for name, value in row.items())
        with_text = [name for name, value in row.items() if isinstance(value, str)]
        name = max(with_text, key=lambda name: len(row[name]), default="FIELD")
        fix = f"Name the text field in the options of the source: {{path: …, fields: {{text: {name}}}}}."
        return BadRow("none of its fields is known", f"its fields: {', '.join(found) or 'none'}", fix=fix)
    missing = [field for field in names.values() if field not in row]
    if missing:
        return BadRow(f"the field {missing[0]} is missing", f"its fields: {', '.join(map(str, row)) or 'none'}")
    said, context, history = (row[names[key]] if key in names else None for key in (SYSTEM, CONTEXT, HISTORY))
    system: list[_Spoken] = [("system", said, names[SYSTEM])] if said else []
    if TURNS in names:
        return _conversation(row[names[TURNS]], system)
    if TEXT in names:
        return _checked([("document", row[names[TEXT]], names[TEXT])])
    user, context = row[names[USER]], context or ""
    if not isinstance(context, str):
        return BadRow(f"{names[CONTEXT]} is not text but {type(context).__name__}")
    if isinstance(user, str) and context.strip():
        user = f"{user}\n\n{context}"
    history = history or []
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        return BadRow(f"{names[HISTORY]} is not a list of pairs")
    roles: tuple[Role, Role] = ("user", "assistant")
    before = [(role, text, names[HISTORY]) for pair in history for role, text in zip(roles, pair, strict=True)]
    last: list[_Spoken] = [("user", user, names[USER])]
    if ASSISTANT in names:
        last.append(("assistant", row[names[ASSISTANT]], names[ASSISTANT]))
    return _checked([*system, *before, *last])


def _conversation(value: object, system: list[_Spoken]) -> tuple[Turn, ...] | BadRow:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        return BadRow("a conversation must be a list of objects")
    turns: list[_Spoken] = []
    for item in value:
        speaker = next((item[key] for key in _ROLE_KEYS if key in item), None)
        content = _joined(next((item[key] for key in _CONTENT_KEYS if key in item), None))
        role = _ROLES.get(str(speaker).lower())
        if role is None:
            return BadRow("unknown speaker", f"{speaker!r} is not one of {', '.join(_ROLES)}")
        if item.get("tool_calls"):  # the answer continues after the tool's result
            return BadRow("a turn calls a tool")
        turns.append((role, content, "a turn"))
    own = [turn for turn in turns if turn[0] == "system"]  # overrides the row's
    return _checked([*([] if own else system), *turns]) if turns else BadRow("the conversation is empty")


def _joined(content: Any) -> Any:
    """The text of content in parts that are all text; other content as it is."""
    if isinstance(content, list) and content and all(_is_text(part) for part in content):
        return "".join(part["text"] for part in content)
    return content


def _is_text(part: object) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)


def texts(value: Any, but: Container[str] = (), but_whole: Container[str] = ()) -> Iterator[str]:
    """Every text inside a row or other plain value, at any depth.

    Args:
        value: strings, mappings, lists and other plain values.
        but: names of fields whose text, or list of texts, is omitted.
        but_whole: names of fields that are omitted with everything in them.
    """
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            is_left_out = name in but_whole or (name in but and not isinstance(inner, Mapping))
            yield from () if is_left_out else texts(inner, but, but_whole)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from texts(inner, but, but_whole)


def _checked(turns: Iterable[_Spoken]) -> tuple[Turn, ...] | BadRow:
    result = []
    for role, text, name in turns:
        if not isinstance(text, str):
            return BadRow(f"{name} is not text but {type(text).__name__}")
        if not text.strip():
            return BadRow(f"{name} has no text")
        if SURROGATE.search(text):
            return BadRow(f"{name} contains half a surrogate pair, which is not valid Unicode")
        said = (after_reasoning(text) if role == "assistant" else text).strip()
        if not said:
            return BadRow(f"{name} has no text after its reasoning")
        result.append(Turn(role, said))
    return tuple(result)
