"""Replayed text has its share of the training, counts in every number, and is presented as it is asked for."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from corpus import data_module, fit, module

from inscp.callbacks.checkpoints import Checkpoints
from inscp.callbacks.provenance import Provenance
from inscp.commands.inspect import documents
from inscp.data.datamodule import InsCPDataModule
from inscp.data.mixture import Mixture, Replay
from inscp.data.sources import Source
from inscp.data.tagging import ConversationTagger, InsCPTagger
from inscp.errors import UserError
from inscp.model.card import model_card


def with_replay(corpus: Path, model: str, share: float = 0.25, **options: Any) -> InsCPDataModule:
    english = Source(str(corpus.parent / "english.jsonl"), licence="CC0-1.0")
    replay = Replay([english], share, ConversationTagger())
    return data_module(corpus, model, replay=replay, **options)


def test_the_training_takes_the_share_and_every_own_row_once(corpus: Path, tiny_model_folder: str) -> None:
    data = with_replay(corpus, tiny_model_folder)
    data.setup("fit")
    taken = data.mixture.order(data.seed).rows(0, data.total_rows)
    own = taken[taken < data.mixture.n_own]
    assert sorted(own) == list(range(data.mixture.n_own))
    assert len(own) == pytest.approx(0.75 * len(taken), abs=1)


def mixture(n_own: int, n_replayed: int, share: float) -> Mixture:
    rows: Any = SimpleNamespace(n_tokens=np.ones(n_own + n_replayed))
    return Mixture(rows, n_own, share)


@pytest.mark.parametrize("share", [0.1, 0.25, 0.3, 0.45, 0.7])
def test_a_pass_over_its_own_rows_takes_none_twice(share: float) -> None:
    for n_own in range(1, 60):
        mixed = mixture(n_own, 5, share)
        taken = mixed.order(seed=0).rows(0, mixed.n_rows(n_own))
        assert sorted(taken[taken < n_own]) == list(range(n_own))


def test_replayed_rows_come_in_an_order_of_their_own() -> None:
    rows = mixture(40, 40, 0.5).order(seed=0).rows(0, 80)
    assert rows[rows < 40].tolist() != (rows[rows >= 40] - 40).tolist()


def test_a_token_budget_counts_replayed_tokens(corpus: Path, tiny_model_folder: str) -> None:
    data = with_replay(corpus, tiny_model_folder, token_budget=5000)
    data.setup("fit")
    taken = data.mixture.order(data.seed).rows(0, data.total_rows)
    assert data.mixture.rows.n_tokens[taken].sum() == pytest.approx(5000, rel=0.05)


def test_training_texts_are_as_long_as_they_may_be_and_held_out_ones_as_a_row(
    tmp_path: Path, tiny_model_folder: str
) -> None:
    passage = tmp_path / "passage.txt"
    passage.write_text("The old mill runs past the river. " * 20, "utf-8")
    data = data_module(
        passage, tiny_model_folder, validation={"held": str(passage)}, row_length=512, document_length=64
    )
    [training], held = data.pipelines(), data.pipeline(data.validation["held"], data.validation_tagger)
    lengths = [len(sequence.input_ids) for sequence in training.sequences()]
    assert max(lengths) <= 64 < max(len(sequence.input_ids) for sequence in held.sequences())
    data.setup("fit")
    assert (data.report.split_documents, data.report.sequences) == (1, len(lengths))


def test_report_card_and_settings_tell_of_both(corpus: Path, tiny_model_folder: str, tmp_path: Path) -> None:
    data, learner = with_replay(corpus, tiny_model_folder, max_steps=1), module(tiny_model_folder)
    fit(tmp_path, data, learner=learner)
    assert data.report.records == {str(corpus): 40, f"{corpus.parent / 'english.jsonl'} (replay)": 30}
    assert data.report.tokens == data.mixture.rows.n_tokens.sum()
    assert data.report.padding == pytest.approx(1 - data.mixture.rows.n_tokens.mean() / data.report.row_length)
    origin = Provenance(tmp_path).origin(learner.trainer)
    assert origin.training["replay"] == "25% of the rows, ConversationTagger(loss='response', system='template')"
    card = model_card(origin)
    assert "english.jsonl (replay): 30 records, licence CC0-1.0" in card
    assert "25% of the rows" in card


def test_the_fingerprint_is_that_of_data_share_and_tagger(corpus: Path, tiny_model_folder: str) -> None:
    replay = with_replay(corpus, tiny_model_folder).replay
    variants = [None, replay, Replay(str(corpus), 0.25), Replay(str(corpus.parent / "english.jsonl"), 0.25)]
    variants.append(Replay(str(corpus.parent / "english.jsonl"), 0.5, ConversationTagger()))
    digests = []
    for variant in variants:
        data = data_module(corpus, tiny_model_folder, replay=variant)
        data.setup("fit")
        digests.append(data.report.fingerprint)
    assert len(set(digests)) == len(variants)


def test_inspect_shows_each_as_it_is_presented(corpus: Path, tiny_model_folder: str) -> None:
    own, replayed = (next(documents(pipeline)) for pipeline in with_replay(corpus, tiny_model_folder).pipelines())
    assert own["rendered"].startswith("<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n今天")
    assert replayed["rendered"].startswith("<|im_start|>user\nWhat is 0 and 0?<|im_end|>")
    assert replayed["source"].endswith("english.jsonl:1")


def test_inspect_shows_and_leaves_out_what_a_training_does(
    corpus: Path, tiny_model_folder: str, tmp_path: Path
) -> None:
    texts = tmp_path / "mixed.jsonl"
    pairs = [{"question": "What?", "answer": answer} for answer in ("That.", "That. " * 50, "This.")]
    texts.write_text("\n".join(map(json.dumps, [*pairs, {"text": "Nobody asks."}])), "utf-8")
    options: dict[str, Any] = {"tagger": ConversationTagger(), "on_bad_record": "skip", "document_length": 28}
    data = data_module(texts, tiny_model_folder, replay=Replay(str(corpus), 0.5, InsCPTagger()), **options)
    data.setup("fit")
    own, replay = data.pipelines()
    asked, read = list(documents(own)), list(documents(replay))
    assert [one["text"] for one in asked] == ["What?\nThat.", "What?\nThis."]
    assert {str(texts): dict(own.reads[0].skipped)} == data.report.skipped
    assert len(data.report.skipped[str(texts)]) == 2
    assert len(asked) + len(read) == data.report.sequences
    assert sum(len(one["input_ids"]) for one in asked + read) == data.report.tokens
    whole = {json.loads(line)["text"] for line in corpus.read_text("utf-8").splitlines()}
    assert {one["text"] for one in read} == whole
    assert any(one["split"] == [2, 2] for one in read)


def test_a_training_with_replay_resumes_at_the_next_unseen_row(
    corpus: Path, tiny_model_folder: str, tmp_path: Path
) -> None:
    saving = Checkpoints(str(tmp_path / "kept"), every_n_steps=3, keep_last=99)
    whole = fit(tmp_path, with_replay(corpus, tiny_model_folder), saving)
    resumed = fit(tmp_path, with_replay(corpus, tiny_model_folder), resume=tmp_path / "kept" / "step-00000003")
    assert resumed.steps == {step: values for step, values in whole.steps.items() if step > 3}
    assert len(resumed.steps) > 3


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1])
def test_a_share_that_means_nothing_is_refused(share: float) -> None:
    with pytest.raises(UserError, match=r"data\.replay\.share"):
        Replay("x.jsonl", share)


def test_a_record_that_nobody_answers_stops_a_fine_tuning_by_its_line_or_is_counted(
    corpus: Path, tiny_model_folder: str, tmp_path: Path
) -> None:
    texts = tmp_path / "mixed.jsonl"
    texts.write_text('{"question": "What?", "answer": "That."}\n{"text": "nobody asks"}\n', "utf-8")
    options = {"tagger": ConversationTagger(), "validation": None}
    with pytest.raises(UserError, match=r"mixed\.jsonl:2: it has no assistant turn"):
        data_module(texts, tiny_model_folder, **options).setup("fit")
    data = data_module(texts, tiny_model_folder, **options, on_bad_record="skip")
    data.setup("fit")
    assert data.report.sequences == 1
    assert sum(sum(reasons.values()) for reasons in data.report.skipped.values()) == 1
