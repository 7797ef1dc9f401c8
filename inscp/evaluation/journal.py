"""A model's answers, kept on disk one by one, so that nothing is computed twice."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from inscp.errors import UserError

Answers = Iterable[tuple[int, Any]]


def short_digest(made_by: Mapping[str, Any]) -> str:
    """A short digest of what determines the answers, for their file names."""
    return hashlib.blake2b(json.dumps(made_by, sort_keys=True).encode(), digest_size=4).hexdigest()


class Journal:
    """Requests and their answers, one JSON object per line, flushed as they arrive.

    Args:
        path: path of the file, new or existing.
        made_by: what determines the answers (weights, precision); it is the first line.

    Raises:
        UserError: the file was made by something else, or cannot be written.
    """

    def __init__(self, path: Path, made_by: Mapping[str, Any]) -> None:
        self._path, self._answers = path, {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise UserError(
                str(path.parent), f"it cannot be written ({error.strerror})", "Give another --out."
            ) from error
        written = path.read_bytes()
        whole = written[: written.rfind(b"\n") + 1]  # the rest is a line that a kill cut off
        try:
            head, *lines = [json.loads(line) for line in whole.splitlines()] or [dict(made_by)]
            self._answers = {line["key"]: line["answer"] for line in lines}
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(str(path), f"not a file of answers ({error})", "Give another --out.") from error
        if head != json.loads(json.dumps(made_by)):
            key = next(key for key in {**made_by, **head} if head.get(key) != made_by.get(key))
            what = f"its answers were made with another {key} ({head.get(key)!r:.100}, now {made_by.get(key)!r:.100})"
            raise UserError(str(path), what, "Give another --out, or the same settings to resume.")
        if written != whole:
            with path.open("rb+") as file:
                file.truncate(len(whole))
        self._unwritten = [] if whole else [dict(made_by)]  # written with the first answer

    def get_or_compute(
        self, kind: str, requests: Sequence[Any], answer: Callable[[list[int]], Answers], on_answer: Callable[[], None]
    ) -> list[Any]:
        """The answer to every request, in order; only those missing from the file are computed.

        Args:
            kind: kind of the requests; equal requests of different kinds are distinct.
            requests: plain values.
            answer: yields (index, answer) for each of the request indices given, in any order; answers are plain.
            on_answer: called for every answer, including those from the file.
        """
        keys = [hashlib.blake2b(json.dumps([kind, r]).encode(), digest_size=16).hexdigest() for r in requests]
        todo: dict[str, int] = {}
        for place, key in enumerate(keys):
            if key in self._answers or key in todo:
                on_answer()
            else:
                todo[key] = place
        if todo:
            for place, value in answer(list(todo.values())):
                self._write({"key": keys[place], "answer": value})
                self._answers[keys[place]] = value
                on_answer()
        return [self._answers[key] for key in keys]

    def _write(self, value: dict[str, Any]) -> None:
        lines = [json.dumps(one, ensure_ascii=False) + "\n" for one in (*self._unwritten, value)]
        self._file.write("".join(lines))
        self._file.flush()
        self._unwritten = []
