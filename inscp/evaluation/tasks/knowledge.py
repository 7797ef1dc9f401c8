"""Benchmarks that lm-evaluation-harness defines: ARC, HellaSwag, MMLU, TruthfulQA, TMMLU+, C-Eval and hundreds more."""

import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cached_property
from typing import Any

from jinja2 import TemplateError

from inscp.data.rows import Row
from inscp.errors import UserError, first_line
from inscp.evaluation.caching_model import CachingModel
from inscp.evaluation.definitions import averaged_metrics, scored_documents, task_manager
from inscp.evaluation.documents import POSITION, read_documents
from inscp.evaluation.items import Item
from inscp.evaluation.prompts import evenly_spaced
from inscp.evaluation.task import Task
from inscp.paths import local_path

_FEWSHOT_SEED = 1234  # the harness's default
_BAD_DOCUMENT = (ArithmeticError, AttributeError, ImportError, LookupError, TypeError, ValueError)


@dataclass(kw_only=True)
class Knowledge(Task):
    """A benchmark by the harness's own definition: prompts, choices, examples and metrics.

    The metrics are those of the definition that are means over documents (`acc`, `acc_norm`, …); the `acc` of
    TruthfulQA is called `mc1` and `mc2`. A group (`mmlu`) has them for itself and for each group inside it
    (`acc/mmlu_stem`): over all documents, or as the mean of its tasks' means where its definition says so
    (`weight_by_size: false`).

    Args:
        benchmark: task or group of the harness (`arc_challenge`, `mmlu`, `truthfulqa_mc2`, `tmmluplus`, …), or
            `ceval_zhtw`: C-Eval in Traditional Chinese. Taiwanese Trivia QA is `tmmluplus_ttqav2`.
        files: file to use instead of the benchmark's data set, with the same fields; ARC may also have query, choices
            and gold, TruthfulQA the columns of its CSV file. For a group, a folder with one file per task, named after
            the task (`mmlu_astronomy.jsonl`).
        fields: mapping from the benchmark's field names to those of the file, where they differ.
        num_fewshot: number of examples before each question; with `files`, taken from other rows.
        limit: maximum number of documents per task, spread evenly over them, as files may be sorted by difficulty.
        chat_template: use the model's chat template.
    """

    version = 2  # limit spreads documents over the whole file
    source = "https://github.com/EleutherAI/lm-evaluation-harness"
    licence = "MIT; each data set has its own"
    needs_likelihoods = True

    benchmark: str
    files: str | None = None
    fields: dict[str, str] = field(default_factory=dict)
    num_fewshot: int | None = None
    limit: int | None = None
    chat_template: bool = False

    @property
    def chats(self) -> bool:
        return self.chat_template

    def check(self) -> None:
        self._asked()
        for definition in self._tasks.values():
            if not averaged_metrics(definition):
                named = ", ".join(definition.aggregation())
                what = f"its metrics ({named}) are not means over documents, or need greedy tokens"
                raise UserError(self.benchmark, what, "Use another benchmark.")
            if self.files:
                for document in definition.eval_docs:
                    self._render(definition, document)

    def items(self, model: CachingModel) -> list[Item]:
        from inscp.evaluation.harness import HarnessModel

        harness_model = HarnessModel(model, self.benchmark)
        places = self._asked()
        for name, definition in self._tasks.items():
            definition.set_fewshot_seed(_FEWSHOT_SEED)
            with redirect_stderr(io.StringIO()):  # a progress bar for each task
                definition.build_all_requests(
                    samples=places[name] if self.limit else None,
                    apply_chat_template=self.chat_template,
                    fewshot_as_multiturn=self.chat_template,
                    chat_template=harness_model.apply_chat_template if self.chat_template else None,
                )
        harness_model.answer(request for definition in self._tasks.values() for request in definition.instances)
        alone = len(self._tasks) == 1
        items = [
            Item(document if alone else f"{name}/{document}", values, shown=shown)
            for name, definition in self._tasks.items()
            for document, values, shown in scored_documents(name, definition, places[name])
        ]
        return _in_groups(self._groups(), items)

    def _groups(self) -> list["_Group"]:
        """The benchmark, if it is a group, and the groups inside it."""
        found = []
        for name, group in self._loaded["groups"].items():
            tasks = {task.task_name for task in group.get_all_tasks()}
            alike = {of.metric for of in group.aggregate_metric_list or () if not of.weight_by_size}
            if name == self.benchmark or len(tasks) < len(self._tasks):
                found.append(_Group("" if name == self.benchmark else f"/{name}", tasks, alike))
        return found

    def _asked(self) -> dict[str, list[int]]:
        """Task -> the indices of the documents to evaluate."""
        return {name: evenly_spaced(range(len(task.eval_docs)), self.limit) for name, task in self._tasks.items()}

    @property
    def _tasks(self) -> Mapping[str, Any]:
        return self._loaded["tasks"]

    @cached_property
    def _loaded(self) -> Mapping[str, Any]:
        """The harness's tasks with their documents, and its groups."""
        manager = task_manager()
        if self.benchmark not in manager.all_tasks:
            near = ", ".join(get_close_matches(self.benchmark, manager.all_tasks, n=3))
            fix = f"Did you mean one of {near}?" if near else "Use one that `lm_eval ls tasks` lists."
            raise UserError(self.benchmark, "lm-evaluation-harness has no such benchmark", fix)
        loaded = self._from_files(manager) if self.files else self._from_hub(manager)
        for name, definition in loaded["tasks"].items():
            if getattr(definition, "UNSAFE_CODE", False) or getattr(definition, "MULTIMODAL", False):
                raise UserError(name, "it runs model-written code, or needs images", "Use another benchmark.")
            self._set_examples(name, definition)
        return loaded

    def _from_hub(self, manager: Any) -> Mapping[str, Any]:
        try:
            return manager.load(self.benchmark)
        except (OSError, ValueError, ImportError) as error:
            reason = first_line(error)
            fix = "Check the network, or give a file of its documents as `files`."
            raise UserError(self.benchmark, f"its data set cannot be loaded ({reason})", fix) from error

    def _from_files(self, manager: Any) -> Mapping[str, Any]:
        from datasets import Dataset, disable_progress_bars
        from lm_eval.tasks._factory import TaskFactory  # the manager takes overrides for single tasks only

        disable_progress_bars()  # one per task and step, each over in an instant
        defined = {str(manager.task_index[name].yaml_path): name for name in manager.all_subtasks}
        first: Row = {}

        def read(config_source: str, **_: Any) -> Mapping[str, Any]:
            name = defined[config_source]
            documents = read_documents(name, self._file_of(name), self.fields)
            first.update(documents[0])
            return {"test": Dataset.from_list(documents)}

        changes = {
            "custom_dataset": read,
            "training_split": None,
            "validation_split": None,
            "test_split": "test",
            "fewshot_split": "test",
        }
        index = manager.task_index
        with self._fixing(first):
            return manager.load(TaskFactory().build(index[self.benchmark], overrides=changes, registry=index))

    def _file_of(self, task: str) -> str:
        """The file that replaces a task's data set."""
        assert self.files
        if (folder := local_path(self.files)).is_dir():
            found = sorted(folder.glob(f"{task}.*"))
            if not found:
                raise UserError(self.files, f"it contains no file for {task}", f"Add {task}.jsonl.")
            return str(found[0])
        if task != self.benchmark:
            what = "it is a group, but a file replaces one task only"
            raise UserError(self.benchmark, what, "Give a folder with one file per task, or name one of its tasks.")
        return self.files

    def _set_examples(self, name: str, definition: Any) -> None:
        """Set the number of examples as the harness does, but raise an error for a number that it would ignore."""
        own = definition.get_config("num_fewshot")
        wanted = self.num_fewshot if self.num_fewshot is not None else own or 0
        if own == 0 and wanted:
            raise UserError("num_fewshot", f"{name} has no examples except those in its prompt", "Remove it.")
        if self.files and wanted >= (rows := len(definition.eval_docs)):
            what = f"its {rows:,} rows are too few for {wanted:,} examples per question"
            raise UserError(self.files, what, "Give a smaller num_fewshot, or more rows.")
        definition.set_config("num_fewshot", wanted)

    def _render(self, definition: Any, document: Mapping[str, Any]) -> None:
        with self._fixing(document):
            definition.doc_to_text(document)
            target = definition.doc_to_target(document)
            if definition.config.doc_to_choice is not None and isinstance(target, int):
                definition.doc_to_choice(document)[target]

    @contextmanager
    def _fixing(self, document: Mapping[str, Any]) -> Iterator[None]:
        try:
            yield
        except (*_BAD_DOCUMENT, TemplateError) as error:
            where = str(document.get(POSITION, self.files))
            what = f"{self.benchmark} cannot read it ({error})"
            raise UserError(where, what, "Fix the line, or give the names of its fields in `fields`.") from error


@dataclass(frozen=True)
class _Group:
    """Tasks with metrics in common.

    Attributes:
        suffix: appended to the names of its metrics.
        tasks: names of its tasks.
        alike: metrics in which all of its tasks have the same weight, whatever their sizes.
    """

    suffix: str
    tasks: Set[str]
    alike: Set[str]


def _in_groups(groups: Sequence[_Group], items: Sequence[Item]) -> list[Item]:
    """The items, with the metrics of every group that their tasks belong to."""
    sizes = Counter((_task_of(item), metric) for item in items for metric in item.values)

    def placed(item: Item) -> Item:
        task, values, weights = _task_of(item), dict(item.values), {}
        for group in (of for of in groups if task in of.tasks):
            for metric, value in item.values.items():
                values[metric + group.suffix] = value
                if metric.partition(",")[0] in group.alike:  # a filter may follow
                    weights[metric + group.suffix] = 1 / sizes[task, metric]
        return replace(item, values=values, weights=weights)

    return list(map(placed, items))


def _task_of(item: Item) -> str:
    return item.id.partition("/")[0]
