"""Benchmarks as defined by lm-evaluation-harness: the index of definitions, their metrics, and scored answers."""

import hashlib
import logging
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from inscp.optional import library

_OWN = Path(__file__).parent / "tasks" / "benchmarks"
_SHARES = {"acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match"}
_GREEDY = {"loglikelihood": "acc", "multiple_choice": "exact_match"}  # output type -> metric of greedy tokens
_ScoredDocument = tuple[str, dict[str, bool | float], dict[str, Any]]


@cache
def task_manager() -> Any:
    """The index of all definitions, the harness's and ours; building it takes ten seconds.

    Raises:
        UserError: the harness is not installed.
    """
    tasks = library("lm_eval.tasks", "knowledge")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return tasks.TaskManager(include_path=str(_OWN))


def averaged_metrics(definition: Any) -> set[str]:
    """The metrics that are means over documents and need only likelihoods or generations."""
    from lm_eval.api.metrics import mean

    averaged = {name for name, aggregation in definition.aggregation().items() if aggregation is mean}
    return averaged if definition.get_config("process_results") else averaged - {_GREEDY.get(definition.OUTPUT_TYPE)}


def scored_documents(name: str, definition: Any, places: Sequence[int]) -> Iterator[_ScoredDocument]:
    """(id, metric -> value, what to show) of each document whose requests have been answered.

    Args:
        name: name of the benchmark.
        definition: its definition.
        places: indices of the evaluated documents among all.
    """
    definition.apply_filters()
    known = averaged_metrics(definition)
    of_document: dict[int, list[Any]] = {}
    for request in definition.instances:
        of_document.setdefault(request.doc_id, []).append(request)
    for number, requests in of_document.items():
        document, values = requests[0].doc, {}
        for filtered in requests[0].filtered_resps:
            found = definition.process_results(document, [request.filtered_resps[filtered] for request in requests])
            for metric, value in found.items():
                if metric in known:
                    called = _metric_name(name, metric) if filtered == "none" else f"{metric},{filtered}"
                    values[called] = _value(definition, metric, value)
        yield _id(places[number], definition, document), values, _shown(definition, requests)


def _id(number: int, definition: Any, document: Any) -> str:
    """The document's number and a digest of its question, as that number means another document in another file."""
    question = str(definition.doc_to_text(document))
    return f"{number} {hashlib.blake2b(question.encode(), digest_size=4).hexdigest()}"


def _metric_name(name: str, metric: str) -> str:
    """The harness's name, except for TruthfulQA's mc1 and mc2, which are both `acc` in the harness."""
    measure = re.search("mc[12]", name)
    return measure.group() if measure and metric == "acc" else metric


def _value(definition: Any, metric: str, value: Any) -> bool | float:
    is_share = metric in _SHARES and not definition.get_config("process_results")
    return bool(value) if is_share else float(value)


def _shown(definition: Any, requests: Sequence[Any]) -> dict[str, Any]:
    document = requests[0].doc
    target = definition.doc_to_text(document) if definition.multiple_input else definition.doc_to_target(document)
    chosen, gold = requests[0].resps[0], target
    if definition.OUTPUT_TYPE == "multiple_choice":
        choices = definition.doc_to_choice(document)
        chosen = choices[int(np.argmax([request.resps[0][0] for request in requests[: len(choices)]]))]
        gold = choices[target] if isinstance(target, int) else target
    return {"question": document.get("question", requests[0].args[0]), "chosen": chosen, "gold": gold}
