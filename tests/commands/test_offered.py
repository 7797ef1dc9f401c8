"""What a training is told before it begins."""

import sys
import warnings
from pathlib import Path

import pytest

from inscp.commands.offered import warn_of_languages
from inscp.data.datamodule import InsCPDataModule
from inscp.text.language import primary


@pytest.mark.parametrize("language", ["zh-TW", "und"])
def test_languages_are_told_apart_only_where_there_is_something_to_tell_them_by(
    language: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "Helsingin keskustassa on paljon kauppoja."}', "utf-8")
    data = InsCPDataModule(str(tmp_path / "a.jsonl"), language=language)
    if language == "und":
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warn_of_languages(data)
        return
    with pytest.warns(UserWarning, match="1 of 1 texts of data.train look like fi"):
        warn_of_languages(data)
    primary.cache_clear()
    monkeypatch.setitem(sys.modules, "langcodes", None)  # as without the extra `eval`
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_languages(data)
