"""The scores of each item of an evaluation, one line per item, so that evaluations can be compared item by item."""

import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from inscp.errors import UserError
from inscp.paths import write_atomically

ITEMS = "results.items"
"""Name of the items folder among the artifacts of an MLflow run."""


@dataclass(frozen=True, slots=True)
class Item:
    """One prompt or question, and the scores of its answer.

    Attributes:
        id: the same for every model.
        values: metric -> value. Bools are aggregated to a fraction, numbers to a mean.
        weights: metric -> weight of its value in the mean, where that is not 1 (tokens, say).
        shown: what to show to people: prompt, response, …
    """

    id: str
    values: Mapping[str, bool | float]
    weights: Mapping[str, float] = field(default_factory=dict)
    shown: Mapping[str, Any] = field(default_factory=dict)


def items_folder(results: Path) -> Path:
    """The folder of the items of a results file."""
    return results.with_name(f"{results.name.removesuffix('.json')}.items")


def items_file(folder: Path, task: str) -> Path:
    """The file of the items of one task."""
    return folder / f"{task}.jsonl"


def write_items(folder: Path, task: str, items: Sequence[Item]) -> None:
    """Write the items of a task, one per line."""
    write_atomically(items_file(folder, task), _lines(items))


def read_items(folder: Path, task: str) -> list[Item]:
    """Read what `write_items` wrote.

    Raises:
        UserError: there is no such file, or a line is not an item.
    """
    return _read(items_file(folder, task), Path.read_bytes)


def write_values(folder: Path, task: str, items: Sequence[Item]) -> None:
    """Write the scores of each item, as `read_values` returns them: small, and free to be redistributed."""
    folder.mkdir(parents=True, exist_ok=True)
    _gzip_file(folder, task).write_bytes(gzip.compress(_lines(items).encode(), mtime=0))


def read_values(folder: Path, task: str) -> list[Item]:
    """Read what `write_items` or `write_values` wrote, without texts: each id is a digest of the original one.

    Raises:
        UserError: there is no such file, or a line is not an item.
    """
    packed = _gzip_file(folder, task)
    if packed.is_file():
        return _read(packed, lambda path: gzip.decompress(path.read_bytes()))
    return list(map(_anonymised, read_items(folder, task)))


def _lines(items: Sequence[Item]) -> str:
    return "".join(json.dumps(asdict(item), ensure_ascii=False) + "\n" for item in items)


def _gzip_file(folder: Path, task: str) -> Path:
    return items_file(folder, task).with_suffix(".jsonl.gz")


def _anonymised(item: Item) -> Item:
    return Item(hashlib.blake2b(item.id.encode(), digest_size=8).hexdigest(), item.values, item.weights)


def _read(path: Path, content: Callable[[Path], bytes]) -> list[Item]:
    number = 0
    fix = "Keep the folder next to the results file, or run evaluate again."
    try:
        items = []
        # An answer may contain other line breaks, such as U+2028, which JSON does not escape.
        for number, line in enumerate(content(path).splitlines(), 1):  # noqa: B007
            items.append(_item(**json.loads(line)))
        return items
    except OSError as error:
        raise UserError(str(path), f"no items of a task ({error.strerror or error})", fix) from error
    except (EOFError, TypeError, ValueError, zlib.error) as error:
        raise UserError(f"{path}:{number}", f"not an item of a task ({error})", fix) from error


def _item(id: str, values: dict[str, Any], weights: dict[str, Any], shown: dict[str, Any]) -> Item:
    for number in (*typed(values, dict).values(), *typed(weights, dict).values()):
        typed(number, float, int, bool)
    return Item(typed(id, str), values, weights, typed(shown, dict))


def typed(value: Any, *kinds: type) -> Any:
    """`value`, if it is of one of these types.

    Raises:
        TypeError: it is not.
    """
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise TypeError(f"{value!r} is not of type {kinds[0].__name__}")
    return value
