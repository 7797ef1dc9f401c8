"""Measure how time and memory of the near-duplicate search grow with the number of records.

python experiments/data_quality/near_duplicates.py 100000 500000 1000000
"""

import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator

from inscp.records import Candidate, Record, Turn
from inscp.selection.duplicates import NearDuplicates
from inscp.selection.filters import Drop

_WORDS, _LENGTH, _COPIES = 50_000, 40, 0.1


class Texts:
    """Records of forty words; a tenth repeat an earlier one with another last word. Every iteration yields the same."""

    def __init__(self, n: int) -> None:
        self._n = n

    def __iter__(self) -> Iterator[Candidate]:
        draw = random.Random(0)
        recent: list[list[int]] = []
        for number in range(self._n):
            if recent and draw.random() < _COPIES:
                words = [*draw.choice(recent)[:-1], draw.randrange(_WORDS)]
            else:
                words = [draw.randrange(_WORDS) for _ in range(_LENGTH)]
                recent = [*recent[-999:], words]
            text = " ".join(f"w{word}" for word in words)
            yield Candidate(Record(str(number), (Turn("document", text),)), "made", _LENGTH)


def measure(n: int) -> None:
    """Print one line of the table, for `n` records."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    start = time.perf_counter()
    dropped = sum(isinstance(verdict, Drop) for _, verdict in NearDuplicates().verdicts(Texts(n)))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"| {n:,} | {time.perf_counter() - start:,.0f} s | {peak:.2f} GiB | {before:.2f} GiB | {dropped / n:.2%} |",
        flush=True,
    )


if __name__ == "__main__":
    if len(sys.argv) == 2:
        measure(int(sys.argv[1]))
    else:
        print("| records | time | peak memory | before the start | dropped |\n|---|---|---|---|---|", flush=True)
        for size in sys.argv[1:]:  # each in its own process, so that the peak is its own
            subprocess.run([sys.executable, __file__, size], check=True)
