"""A large file out of a small one, for the time and memory of `select`: no record of it is nearly another one.

    python experiments/data_quality/large.py my.jsonl 500 large.jsonl       # megabytes

Every copy of the records has its words in another order, but for a hundredth that is kept as it is, so that duplicates
are there to be found.
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
