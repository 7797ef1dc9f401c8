"""What every plot needs whose names are a user's own."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_FONTS = ("Noto Sans CJK JP", "Noto Sans CJK SC", "Hiragino Sans", "PingFang SC", "Microsoft YaHei", "Malgun Gothic",
          "WenQuanYi Zen Hei", "Noto Sans Arabic", "Noto Sans Devanagari", "Noto Sans Thai")  # fmt: skip
"""For scripts that matplotlib's own font lacks, those of them that the system has."""


def plain_logarithm(axis: Any) -> None:
    """A logarithmic x axis with numbers as people write them, as many as there is room for, wide or narrow."""
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
    axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.xaxis.set_minor_formatter(NullFormatter())


@contextmanager
def names_as_written() -> Iterator[None]:
    """Plots made and saved in it show texts as they are: a `$` begins no formula, letters come from fonts that have
    them, and where none has, a box says so by itself."""
    from matplotlib import font_manager, rc_context, rcParams

    known = set(font_manager.get_font_names())
    fonts = [*rcParams["font.family"], *(name for name in _FONTS if name in known)]
    with rc_context({"text.parse_math": False, "font.family": fonts}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield
