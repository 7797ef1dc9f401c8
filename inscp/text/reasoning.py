"""The reasoning in think tags that stands before an answer."""

CLOSED = "</think>"


def begins_to_reason(text: str) -> bool:
    """Whether a text opens the tag itself, whether or not it closes it."""
    return text.lstrip().startswith("<think>")


def behind_reasoning(text: str, is_opened: bool = False) -> str:
    """What a text says behind the reasoning that it begins with; nothing where that has no end.

    Args:
        text: an assistant's.
        is_opened: whether the tag was opened ahead of the text.
    """
    if not (is_opened or begins_to_reason(text)):
        return text
    _, closed, said = text.rpartition(CLOSED)
    return said.lstrip() if closed else ""
