"""A file is read again where it has changed, and only there."""

import hashlib
import os
import time
from pathlib import Path

import pytest

from inscp.digests import file_digest
from inscp.paths import cache_folder


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The files that were read; what changed a moment ago is remembered as well."""
    monkeypatch.setattr("inscp.digests._TICK", 0)
    monkeypatch.setenv("INSCP_CACHE", str(tmp_path / "cache"))
    found: list[str] = []
    read = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, *how: found.append(file.name) or read(file, *how))
    return found


def test_what_has_not_changed_is_not_read_again(tmp_path: Path, reads: list[str]) -> None:
    paths = [tmp_path / name for name in ("a.jsonl", "b.jsonl")]
    for path in paths:
        path.write_text(path.name, "utf-8")
    expected = [hashlib.blake2b(path.read_bytes()).hexdigest() for path in paths]
    for _ in range(3):
        assert [file_digest(path) for path in paths] == expected
    assert reads == [str(path) for path in paths]


def test_a_change_is_seen_though_size_and_time_are_as_before(tmp_path: Path, reads: list[str]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("one", "utf-8")
    before, times = file_digest(path), path.stat()
    time.sleep(0.02)  # a tick of the clock
    path.write_text("two", "utf-8")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert file_digest(path) != before
    assert len(reads) == 2


def test_what_changed_a_moment_ago_is_not_remembered(
    tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inscp.digests._TICK", 3600 * 10**9)  # however slow this machine is
    path = tmp_path / "a.jsonl"
    path.write_text("one", "utf-8")
    assert file_digest(path) == file_digest(path)
    assert len(reads) == 2
    assert not list(cache_folder("digests").iterdir())
    os.utime(path, (0, 0))  # nor is it by what its writer says
    assert file_digest(path) == file_digest(path)
    assert len(reads) == 4


def test_where_nothing_can_be_kept_a_file_is_read_each_time(
    tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("one", "utf-8")
    monkeypatch.setenv("INSCP_CACHE", str(path))
    assert file_digest(path) == file_digest(path) == hashlib.blake2b(b"one").hexdigest()
    assert len(reads) == 2
