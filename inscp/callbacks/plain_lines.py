"""Progress as plain lines: how often one is written, and times as people read them. It needs no Lightning."""

SECONDS_BETWEEN_LINES = 10.0


def duration(seconds: float) -> str:
    """`75.2` -> `1m15s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s" if minutes else f"{rest}s"
