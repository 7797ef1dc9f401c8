"""Scores on disk: a folder of Parquet parts, each written atomically, with the settings that made them."""

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from inscp.errors import UserError
from inscp.paths import write_json
from inscp.records import Score

_MADE_BY, _REPORT = "_scoring.json", "_report.json"  # ignored by readers of Parquet folders
_UNSCORED = b"unscored"
_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("n_tokens", pa.int64()),
        ("n_bytes", pa.int64()),
        ("nll", pa.float64()),
        ("perplexity", pa.float64()),
        ("bits_per_byte", pa.float64()),
    ]
)


class ScoreFolder:
    """The scores of some sources under one model.

    Args:
        folder: made by `create`, or by an earlier run.

    Raises:
        UserError: it contains no scores.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.made_by: dict[str, Any] = json.loads((folder / _MADE_BY).read_text("utf-8"))
        except (OSError, json.JSONDecodeError) as error:
            raise UserError(str(folder), "it contains no scores", "Give the folder that `score` wrote.") from error
        self.sources: list[dict[str, Any]] = self.made_by["sources"]

    @classmethod
    def create(cls, folder: Path, made_by: dict[str, Any]) -> "ScoreFolder":
        """The folder for these settings, new or from an earlier run.

        Args:
            folder: its path.
            made_by: everything that determines the scores; `sources` has the name, path and fingerprint of each source.

        Raises:
            UserError: it contains other files, or scores made with other settings.
        """
        if not (folder / _MADE_BY).exists():
            if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                raise UserError(str(folder), "it already exists and holds other files", "Give another --out.")
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / _MADE_BY, made_by)
        found = cls(folder)
        for key, value in made_by.items():
            if found.made_by.get(key) != value:
                what = f"its scores were made with another {key} ({found.made_by.get(key)!r:.200}, now {value!r:.200})"
                if key == "sources":
                    what = "its scores are of other data, or of data that has changed"
                raise UserError(str(folder), what, "Give another --out, or the same settings to resume.")
        return found

    def remove_empty(self) -> None:
        """Remove the folder if it contains no scores to resume from."""
        if not any(self.folder.glob("part-*")):
            shutil.rmtree(self.folder)

    def has(self, source: int, chunk: int) -> bool:
        return self._part(source, chunk).exists()

    def write(self, source: int, chunk: int, scores: list[Score], unscored: Mapping[str, int]) -> None:
        """Write the scores of one chunk of a source's records, and the number of records without one, by reason."""
        name = self.sources[source]["name"]
        rows = [(s.id, name, s.n_tokens, s.n_bytes, s.nll, s.perplexity, s.bits_per_byte) for s in scores]
        columns = list(zip(*rows, strict=True)) if rows else [()] * len(_SCHEMA)
        arrays = [pa.array(values, field.type) for values, field in zip(columns, _SCHEMA, strict=True)]
        part = self._part(source, chunk)
        partial = part.with_name(f".{part.name}.partial")
        schema = _SCHEMA.with_metadata({_UNSCORED: json.dumps(unscored)})
        pq.write_table(pa.table(arrays, schema=schema), partial)
        partial.rename(part)

    def unscored(self, source: int) -> Counter[str]:
        """Reason -> how many records of the source could not be scored."""
        total: Counter[str] = Counter()
        for part in self._parts(source):
            total.update(json.loads(pq.read_schema(part).metadata[_UNSCORED]))
        return total

    def numbers(self, source: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """n_tokens and n_bytes (int64) and nll (float64) of every scored record of a source, in order."""
        tables = [pq.read_table(part, columns=["n_tokens", "n_bytes", "nll"]) for part in self._parts(source)]
        whole = pa.concat_tables(tables) if tables else _SCHEMA.empty_table()
        return tuple(whole.column(name).to_numpy() for name in ("n_tokens", "n_bytes", "nll"))  # type: ignore[return-value]

    def read(self, source: int) -> Iterator[Score]:
        """The scores of a source in the order of its records."""
        for part in self._parts(source):
            columns = pq.read_table(part, columns=["id", "n_tokens", "n_bytes", "nll"]).to_pydict()
            yield from map(Score, *columns.values())

    @property
    def counts_whole_records(self) -> bool:
        """Whether a score counts all tokens of a record, not only those of its answers."""
        return bool(self.made_by["given"] != "response")

    def index(self, name: str, fingerprint: str) -> int:
        """The index of the scored source with these contents.

        Raises:
            UserError: there is none: the scores belong to other data.
        """
        for number, source in enumerate(self.sources):
            if source["fingerprint"] == fingerprint:
                return number
        same = next((source for source in self.sources if source["name"] == name), None)
        what = f"{name} has changed since it was scored" if same else f"{name} was not scored in it"
        raise UserError(str(self.folder), what, f"Run score on {name} again, into a new folder.")

    @property
    def cost(self) -> dict[str, Any]:
        """The cost of the scores, from the last report; empty without one."""
        report = self.folder / _REPORT
        return json.loads(report.read_text("utf-8")).get("cost", {}) if report.exists() else {}

    def write_report(self, report: dict[str, Any]) -> None:
        write_json(self.folder / _REPORT, report)

    def _part(self, source: int, chunk: int) -> Path:
        return self.folder / f"part-{source:03}-{chunk:06}.parquet"

    def _parts(self, source: int) -> list[Path]:
        return sorted(self.folder.glob(f"part-{source:03}-*.parquet"))


def summary(n_tokens: np.ndarray, n_bytes: np.ndarray, nll: np.ndarray) -> dict[str, float]:
    """The perplexity of all tokens together (the paper's), bits per byte, and quantiles over the records."""
    if not len(n_tokens):
        return {"records": 0, "tokens": 0}
    places = (5, 25, 50, 75, 95)
    quantiles = np.exp(np.percentile(nll / n_tokens, places))
    return {
        "records": len(n_tokens),
        "tokens": int(n_tokens.sum()),
        "perplexity": float(np.exp(nll.sum() / n_tokens.sum())),
        "bits_per_byte": float(nll.sum() / np.log(2) / n_bytes.sum()),
        **{f"perplexity_p{place}": float(value) for place, value in zip(places, quantiles, strict=True)},
    }
