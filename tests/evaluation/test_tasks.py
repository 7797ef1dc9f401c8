"""Every task says where its measure comes from, under which licence its prompts are, and what is asked."""

from dataclasses import is_dataclass

import pytest

from inscp.evaluation.task import Task
from inscp.evaluation.tasks import _kinds, import_all
from inscp.evaluation.tasks.language_alignment import LanguageAlignment

import_all()
KINDS = [kind for kind in _kinds(Task) if kind.__module__.startswith("inscp.evaluation.tasks.")]  # type: ignore[type-abstract]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_task_declares_source_licence_version_and_what_every_key_means(kind: type[Task]) -> None:
    assert is_dataclass(kind)
    assert kind.source
    assert kind.licence
    assert kind.version >= 1
    told = "".join(base.__doc__ or "" for base in kind.__mro__)
    for key in kind.__dataclass_fields__:
        assert f" {key}: " in told, key


def test_settings_are_plain_values_with_the_licence() -> None:
    settings = LanguageAlignment(languages=["en"], limit=3).settings
    assert settings["licence"] == "CC0-1.0"
    assert (settings["languages"], settings["limit"]) == (["en"], 3)
