"""The reasoning in think tags before an answer."""

CLOSED = "</think>"


def begins_to_reason(text: str) -> bool:
    """Whether a text begins with the opening tag, whether or not the reasoning ends."""
    return text.lstrip().startswith("<think>")


def after_reasoning(text: str, is_opened: bool = False) -> str:
    """The text after its initial reasoning; empty if the reasoning does not end.

    Args:
        text: an assistant's text.
        is_opened: whether the tag was opened before the text.
    """
    if not (is_opened or begins_to_reason(text)):
        return text
    _, closed, said = text.rpartition(CLOSED)
    return said.lstrip() if closed else ""
