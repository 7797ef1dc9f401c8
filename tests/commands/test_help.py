"""What `--help` of a training command shows."""

import re

import pytest

from inscp.__main__ import main


@pytest.fixture
def fit_help(capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    return capsys.readouterr().out


def test_own_keys_are_reported_in_full_and_before_those_of_lightning(fit_help: str) -> None:
    own, lightnings = fit_help.split("Keys of lightning.Trainer")
    assert "--model.pretrained" in own
    assert "a folder, a Hub id" in own
    assert {"model", "data", "mlflow", "cost", "before_after", "stop_when_aligned", "checkpoint"} <= set(
        re.findall(r"^  --(\w+)\.", own, re.MULTILINE)
    )
    assert "--trainer.max_steps -1\n" in lightnings
    assert "--trainer." not in own
    assert " ".join(own.split()).count("JSONL file with one field per language, the same prompt in each;") == 2


def test_usage_and_variables_are_reported_once(fit_help: str) -> None:
    assert fit_help.startswith("usage: python -m inscp fit --config FILE [--KEY VALUE ...]\n")
    assert fit_help.count("INSCP_FIT__") == 1
    assert len(fit_help.splitlines()) < 400


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["fit", "--data.tagger.help", "InsCPTagger"], "--data.tagger.loss {all,response}"),
        (["fit", "--data.tagger.help"], "Choose from: ConversationTagger, InsCPTagger, PlainTagger."),
        (["fit", "--model.adapter.help"], "--model.adapter.rank RANK"),
        (["merge", "--method.help"], "Choose from: Average, ChatVector, ElChat."),
        (["evaluate", "--tasks.help"], "Choose from: BOLD, Knowledge, LanguageAlignment,"),
    ],
)
def test_the_help_of_a_key_is_that_of_its_class_or_names_the_classes(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    shown = capsys.readouterr().out
    assert told in shown
    assert "usage" not in shown
    assert "INSCP_" not in shown
