"""The task interface. A new one is a new file in `inscp/evaluation/tasks`, or any class that a configuration names."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from inscp.data.rows import Row
from inscp.errors import UserError
from inscp.evaluation.caching_model import CachingModel
from inscp.evaluation.items import Item
from inscp.evaluation.prompts import evenly_spaced, find_field, read_table, text_of
from inscp.evaluation.results import Metric
from inscp.evaluation.statistics import means
from inscp.records import Generation, Role, Turn


class Task(ABC):
    """One measurement. A subclass is a dataclass whose fields are configuration keys.

    Attributes:
        version: incremented when the same answers get other scores.
        source: where the measure is defined.
        licence: licence of its default prompts.
        needs_likelihoods: whether answers alone, which are all that a server provides, do not suffice.
    """

    version: ClassVar[int] = 1
    source: ClassVar[str]
    licence: ClassVar[str]
    needs_likelihoods: ClassVar[bool] = False

    @property
    def chats(self) -> bool:
        """Whether it needs the model's chat template."""
        return False

    @property
    def by(self) -> str:
        """The model that judges the answers, if not the task's default; else empty."""
        return ""

    @property
    def settings(self) -> dict[str, Any]:
        """Its configuration, and the sources of its measure and prompts, as plain values."""
        return {"source": self.source, "licence": self.licence, **asdict(self)}  # type: ignore[call-overload]

    @property
    def item_metrics(self) -> Sequence[str]:
        """The metrics that may be means over its items, as far as its configuration shows; * matches any text."""
        return ["*"]

    @abstractmethod
    def check(self) -> None:
        """Read the prompts before a model is loaded.

        Raises:
            UserError: they are missing or invalid.
        """

    @abstractmethod
    def items(self, model: CachingModel) -> Sequence[Item]:
        """Prompt the model, and score each answer."""

    def metrics(self, items: Sequence[Item]) -> dict[str, Metric]:
        """The metrics of the items."""
        return means(items)


@dataclass(kw_only=True)
class Prompted(Task):
    """A task that prompts the model with the rows of a file and scores each answer by itself.

    Args:
        prompts: file with one prompt per row, in any format of training data.
        prompt_field: field of the prompt.
        limit: maximum number of prompts, spread evenly over the file.
        leave_out: mapping from a field to values; rows with one of them are skipped. An empty string means no value.
        chat: use the model's chat template; false lets the model continue the prompt as plain text.
        max_new_tokens: maximum tokens per response; longer ones are cut off.
    """

    prompts: str
    prompt_field: str = "prompt"
    limit: int | None = None
    leave_out: dict[str, list[str]] = field(default_factory=dict)
    chat: bool = True
    max_new_tokens: int = 256

    @property
    def chats(self) -> bool:
        return self.chat

    def rows(self) -> list[tuple[str, Row]]:
        """The rows to prompt with, and their positions.

        Raises:
            UserError: there are none, or no row has a field of `leave_out`.
        """
        table = read_table(self.prompts)
        for name in self.leave_out:
            if all(find_field(row, [name]) is None for _, row in table):
                known = ", ".join(map(str, table[0][1]))
                what = f"no row has the field {name} given in leave_out (the first has: {known})"
                raise UserError(self.prompts, what, "Name one of its fields.")
        rows = [row for row in table if not self._is_left_out(row[1])]
        if not rows:
            raise UserError(self.prompts, "leave_out excludes every prompt", "Exclude less.")
        return evenly_spaced(rows, self.limit)

    def _is_left_out(self, row: Row) -> bool:
        found = {name: find_field(row, [name]) for name in self.leave_out}
        return any(("" if of is None else str(of)) in self.leave_out[name] for name, of in found.items())

    def check(self) -> None:
        for position, row in self.rows():
            text_of(position, row, [self.prompt_field])

    def items(self, model: CachingModel) -> list[Item]:
        rows = self.rows()
        role: Role = "user" if self.chat else "document"
        texts = [text_of(position, row, [self.prompt_field]) for position, row in rows]
        # A trailing space would be a separate token, after which no model can write its usual words.
        asked = [(Turn(role, text if self.chat else text.rstrip()),) for text in texts]
        answers = model.generate(type(self).__name__, asked, self.max_new_tokens)
        values = self.values([row for _, row in rows], answers)
        return [
            Item(text, worth, shown={"prompt": text, "response": answer.response, "ended": answer.ended})
            for text, worth, answer in zip(texts, values, answers, strict=True)
        ]

    @abstractmethod
    def values(self, rows: Sequence[Row], answers: Sequence[Generation]) -> Sequence[Mapping[str, bool | float]]:
        """The scores of each answer: metric -> value."""
