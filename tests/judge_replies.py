"""What a judge says when all is well."""

import json
from typing import Any


def graded(rating: Any = 7, language: str = "zh-TW") -> str:
    return json.dumps({"reason": "It is so.", "language": language, "rating": rating})


def compared(better: str) -> str:
    return json.dumps({"reason": "It is so.", "better": better})
