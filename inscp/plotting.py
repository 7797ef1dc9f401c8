"""Plot settings for axes and user-chosen names."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_FONTS = ("Noto Sans CJK JP", "Noto Sans CJK SC", "Hiragino Sans", "PingFang SC", "Microsoft YaHei", "Malgun Gothic",
          "WenQuanYi Zen Hei", "Noto Sans Arabic", "Noto Sans Devanagari", "Noto Sans Thai")  # fmt: skip
"""Fonts for scripts that matplotlib's own font lacks; those that the system has are used."""


def plain_logarithm(axis: Any) -> None:
    """A logarithmic x axis with plain numbers, as many as fit."""
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
    axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.xaxis.set_minor_formatter(NullFormatter())


@contextmanager
def names_as_written() -> Iterator[None]:
    """Plots made and saved inside show text literally: `$` begins no formula, glyphs come from any font that has them,
    and a missing glyph is drawn as a box without a warning."""
    from matplotlib import font_manager, rc_context, rcParams

    known = set(font_manager.get_font_names())
    fonts = [*rcParams["font.family"], *(name for name in _FONTS if name in known)]
    with rc_context({"text.parse_math": False, "font.family": fonts}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield
