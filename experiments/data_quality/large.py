"""Make a large file out of a small one, to measure time and memory of `select`: few of its records are near duplicates.

    python experiments/data_quality/large.py my.jsonl 500 large.jsonl       # 500 MB

Records are drawn at random and their words shuffled, except for one in a hundred, which stays as it is: these are the
duplicates to find.
"""

import json
import random
import sys
from pathlib import Path


def main() -> None:
    source, megabytes, target = Path(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3])
    chance = random.Random(0)
    lines = source.read_text("utf-8").splitlines()
    with target.open("wb") as file:
        while file.tell() < megabytes * 1e6:
            record = json.loads(chance.choice(lines))
            if chance.random() > 0.01:
                record = {name: shuffled(value, chance) for name, value in record.items()}
            file.write((json.dumps(record, ensure_ascii=False) + "\n").encode())


def shuffled(text: str, chance: random.Random) -> str:
    words = text.split(" ")
    chance.shuffle(words)
    return " ".join(words)


if __name__ == "__main__":
    main()
