"""What the four choices did to the model: python experiments/data_quality/table.py [outputs/data_quality]"""

import json
import sys
from pathlib import Path

ARMS = ("lowest", "random", "highest", "wiki")
ROWS = (
    ("held-out Chinese, perplexity", "held-out text", "zh_tw perplexity"),
    ("held-out English, perplexity", "held-out text", "en perplexity"),
    ("Chinese prompt: answered in Chinese", "answers to zh-TW prompts", "in_language"),
    ("Chinese prompt: ends its turn", "answers to zh-TW prompts", "ended"),
    ("Chinese prompt: repeats itself", "answers to zh-TW prompts", "looped"),
    ("Chinese prompt: copies the prompt", "answers to zh-TW prompts", "copied"),
    ("English prompt: answered in English", "answers to en prompts", "in_language"),
    ("English prompt: ends its turn", "answers to en prompts", "ended"),
    ("English prompt: repeats itself", "answers to en prompts", "looped"),
)


def main(folder: Path) -> None:
    """One column an arm, one value a seed."""
    found = {arm: [json.loads(p.read_text()) for p in sorted(folder.glob(f"{arm}-*/*/*/before_after.json"))]
             for arm in ARMS}  # fmt: skip
    print(f"| | original | {' | '.join(ARMS)} |\n|---|---|{'---|' * len(ARMS)}")
    for title, group, name in ROWS:
        original = found[ARMS[0]][0]["before"][group][name]
        cells = [", ".join(form(run["after"][group][name], group) for run in found[arm]) for arm in ARMS]
        print(f"| {title} | {form(original, group)} | {' | '.join(cells)} |")


def form(value: float, group: str) -> str:
    return f"{value:.2f}" if group == "held-out text" else f"{value:.0%}"


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/data_quality"))
