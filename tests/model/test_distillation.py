"""On replayed rows the model learns what its teacher predicts, over the whole vocabulary, and elsewhere as ever."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from corpus import data_module, fit, module, trainer
from lightning import Callback
from transformers import CohereConfig, CohereForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from inscp.callbacks.checkpoints import Checkpoints
from inscp.callbacks.cost import TrainingCost
from inscp.callbacks.provenance import Provenance
from inscp.callbacks.throughput import Throughput
from inscp.cost.ledger import Ledger
from inscp.data.datamodule import InsCPDataModule
from inscp.data.mixture import Replay
from inscp.data.tagging import ConversationTagger
from inscp.errors import UserError
from inscp.model import loss
from inscp.model.adapters import LoRA
from inscp.model.device import inference_loss
from inscp.model.distillation import Distillation, Teacher, require_teacher
from inscp.model.loss import NextTokenLoss
from inscp.model.module import InsCPModule
from inscp.pretrained import load_model, load_tokenizer
from inscp.records import IGNORED, PackedBatch

VOCABULARY, LENGTH = 64, 24
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}


def llama(seed: int) -> PreTrainedModel:
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=1, initializer_range=0.5, **SIZES)).eval()


def cohere(seed: int) -> PreTrainedModel:
    """Its logits are scaled: no product of hidden states and output embedding."""
    torch.manual_seed(seed)
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return CohereForCausalLM(CohereConfig(num_hidden_layers=1, logit_scale=0.5, **ids, **SIZES)).eval()


def batch_of(replayed_rows: int = 1) -> PackedBatch:
    """Three rows of two documents each."""
    torch.manual_seed(7)
    ids = torch.randint(3, VOCABULARY, (3, LENGTH))
    targets = ids.roll(-1, 1)
    targets[:, [9, LENGTH - 1]] = IGNORED
    positions = torch.cat([torch.arange(10), torch.arange(LENGTH - 10)]).repeat(3, 1)
    lengths = (10, LENGTH - 10) * 3
    return PackedBatch(ids, targets, positions, lengths, 66, 72, replayed_rows, 22 * replayed_rows)


def plain(model: PreTrainedModel, teacher: PreTrainedModel, batch: PackedBatch, weight: float) -> torch.Tensor:
    """Document by document, with all logits."""
    total = torch.zeros(())
    for row in range(3):
        for part in (slice(0, 10), slice(10, LENGTH)):
            ids, targets = batch.input_ids[row : row + 1, part], batch.targets[row, part]
            logits = model(input_ids=ids).logits[0][targets != IGNORED]
            if row < 3 - batch.replayed_rows:
                total = total + F.cross_entropy(logits, targets[targets != IGNORED], reduction="sum")
            else:
                with torch.no_grad():
                    wanted = teacher(input_ids=ids).logits[0][targets != IGNORED].softmax(1)
                total = total + weight * (wanted * (wanted.log() - logits.log_softmax(1))).sum()
    return total


@pytest.mark.parametrize("replayed_rows", [1, 3])
@pytest.mark.parametrize("make", [llama, cohere])
def test_loss_and_gradients_equal_the_plain_computation(
    make: Any, replayed_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "CHUNK", 8)  # several chunks of each kind, the last ones partly filled
    monkeypatch.setattr(loss, "_ROWS", 4)
    monkeypatch.setattr(loss, "_CACHE_NUMBERS", 3 * VOCABULARY)
    batch, teacher = batch_of(replayed_rows), Teacher(inference_loss(make(1)), 2.5)
    ours, reference = make(0), make(0)
    value, divergence = NextTokenLoss(ours)(batch, teacher=teacher.predictions(batch))
    expected = plain(reference, teacher.root.model, batch, 2.5)
    (value / 3).backward()
    (expected / 3).backward()
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)
    weighted = expected - plain(reference, teacher.root.model, batch, 0)
    torch.testing.assert_close(2.5 * divergence, weighted, rtol=1e-4, atol=1e-4)
    assert not divergence.requires_grad
    for (name, weight), other in zip(ours.named_parameters(), reference.parameters(), strict=True):
        assert weight.grad is not None
        torch.testing.assert_close(weight.grad, other.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_what_the_model_predicts_as_its_teacher_costs_nothing() -> None:
    batch, teacher = batch_of(), Teacher(inference_loss(llama(0)))
    own = replace(
        batch,
        input_ids=batch.input_ids[:2],
        targets=batch.targets[:2],
        position_ids=batch.position_ids[:2],
        lengths=batch.lengths[:4],
        target_positions=batch.target_positions[:44],
        replayed_rows=0,
        replayed_targets=0,
    )
    values, gradients = [], []
    for given in (batch, own):
        model = llama(0)
        value = NextTokenLoss(model)(given, teacher=teacher.predictions(given)).total
        value.backward()
        values.append(value)
        gradients.append(model.model.embed_tokens.weight.grad)
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def data_of(corpus: Path, model: str, **options: Any) -> InsCPDataModule:
    replay = Replay(str(corpus.parent / "english.jsonl"), 0.3, ConversationTagger())
    return data_module(corpus, model, replay=replay, batch_size=4, **options)


def fitted(
    folder: Path, corpus: Path, model: str, *callbacks: Callback, resume: Path | None = None, **options: Any
) -> InsCPModule:
    learner = module(model, **({"distillation": Distillation()} | options))
    fit(folder, data_of(corpus, model, epochs=3.0), *callbacks, learner=learner, resume=resume)
    return learner


def test_replayed_rows_stand_after_the_own_and_are_distinguished_from_them(
    corpus: Path, tiny_model_folder: str
) -> None:
    data = data_of(corpus, tiny_model_folder)
    data.trainer = trainer(corpus.parent)
    data.setup("fit")
    seen = 0
    for batch in data.train_dataloader():
        rows = [bytes(row.numpy().tobytes()) for row in batch.input_ids]
        english = [b"What" in data.tokenizer.decode(ids).encode() for ids in batch.input_ids]
        assert english == sorted(english)
        assert batch.replayed_rows == sum(english)
        found = batch.replayed
        assert [bytes(row.numpy().tobytes()) for row in found.input_ids] == rows[len(rows) - sum(english) :]
        assert torch.equal(found.target_positions, (found.targets.flatten() != IGNORED).nonzero()[:, 0])
        assert sum(found.lengths) == found.input_ids.numel()
        seen += batch.replayed_rows
    assert seen > 4


def divergence(learner: InsCPModule, original: str, corpus: Path) -> float:
    """KL(original || learner) of the replayed text, in nats a token."""
    data = data_of(corpus, original)
    data.trainer = trainer(corpus.parent)
    data.setup("fit")
    learner.eval()
    teacher = Teacher(inference_loss(load_model(original, torch.float32)))
    total = n = 0.0
    for batch in data.train_dataloader():
        if batch.replayed_rows:
            with torch.no_grad():
                total += float(learner.loss(batch.replayed, teacher=teacher.predictions(batch)).divergence)
            n += batch.replayed_targets
    return total / n


def test_it_keeps_the_model_nearer_to_the_original_than_the_replayed_tokens_do(
    tmp_path: Path, corpus: Path, tiny_model_folder: str
) -> None:
    found = [
        divergence(fitted(tmp_path, corpus, tiny_model_folder, distillation=how), tiny_model_folder, corpus)
        for how in (Distillation(), None)
    ]
    assert found[0] < found[1] / 5


def test_a_resumed_training_equals_the_uninterrupted_one_bit_by_bit(
    tmp_path: Path, corpus: Path, tiny_model_folder: str
) -> None:
    """Whose teacher is the original and not what the checkpoint holds."""
    saving = Checkpoints(str(tmp_path / "kept"), every_n_steps=3, keep_last=99)
    whole = fitted(tmp_path, corpus, tiny_model_folder, saving)
    assert whole.teacher is not None
    assert whole.teacher.root.by_document
    resumed = fitted(tmp_path, corpus, tiny_model_folder, resume=tmp_path / "kept" / "step-00000003")
    assert all(torch.equal(whole.weights[name], resumed.weights[name]) for name in whole.weights)


def test_what_lies_beneath_adapters_teaches_as_a_second_copy_of_it_does(
    tmp_path: Path, corpus: Path, tiny_model_folder: str
) -> None:
    """Dropout of the adapters included, which the teacher is without."""
    (tmp_path / "copy").symlink_to(tiny_model_folder)
    teachers = [Distillation(weight=5), Distillation(str(tmp_path / "copy"), weight=5)]
    adapter = LoRA(rank=4, dropout=0.2)
    beneath, beside = (
        fitted(tmp_path, corpus, tiny_model_folder, distillation=how, adapter=adapter) for how in teachers
    )
    assert beneath.teacher is not None
    assert beside.teacher is not None
    assert beneath.teacher.root is beneath.loss
    assert beside.teacher.root is not beside.loss
    assert all(torch.equal(weight, beside.weights[name]) for name, weight in beneath.weights.items())
    changed = [weight for name, weight in beneath.weights.items() if "lora_B" in name and weight.any()]
    assert len(changed) * 2 == len(beneath.weights)


def test_how_far_the_model_is_from_its_teacher_is_logged_by_itself(
    tmp_path: Path, corpus: Path, tiny_model_folder: str
) -> None:
    learner = fitted(tmp_path, corpus, tiny_model_folder, distillation=Distillation(weight=3))
    logged = learner.trainer.callback_metrics
    assert 0 < logged["train/divergence"] < 0.1 < logged["train/loss"]


def test_the_cost_and_the_card_tell_of_the_teacher(tmp_path: Path, corpus: Path, tiny_model_folder: str) -> None:
    flops = []
    for how in (None, Distillation()):
        throughput = Throughput()
        counting = TrainingCost(Ledger(), throughput)
        learner = fitted(tmp_path, corpus, tiny_model_folder, throughput, counting, distillation=how)
        assert counting.cost is not None
        flops.append(counting.cost.flops)
    assert 1.05 < flops[1] / flops[0] < 1.15  # 0.3 of the rows pass forward once more: a third of a step's work
    told = Provenance(tmp_path).origin(learner.trainer).training["distillation"]
    assert told == f"replayed rows, by {Path(tiny_model_folder).name}, weight 1"


def test_a_teacher_of_another_vocabulary_is_refused(tmp_path: Path, corpus: Path, tiny_model_folder: str) -> None:
    tokenizer = load_tokenizer(tiny_model_folder)
    tokenizer.add_tokens(["夜市"])
    load_model(tiny_model_folder, torch.float32).save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match="has a different vocabulary"):
        fitted(tmp_path, corpus, tiny_model_folder, distillation=Distillation(str(tmp_path / "other")))
    with pytest.raises(UserError, match="has a different vocabulary"):  # one fewer
        require_teacher(tiny_model_folder, str(tmp_path / "other"), 64)
    tokenizer = load_tokenizer(tiny_model_folder)
    model = load_model(tiny_model_folder, torch.float32)
    model.resize_token_embeddings(len(tokenizer) + 8)
    model.save_pretrained(tmp_path / "padded")
    tokenizer.save_pretrained(tmp_path / "padded")
    with pytest.raises(UserError, match=r"its output layer has .* rows, but the model's"):
        fitted(tmp_path, corpus, tiny_model_folder, distillation=Distillation(str(tmp_path / "padded")))


def test_a_teacher_that_cannot_see_a_row_is_refused(tmp_path: Path, corpus: Path, tiny_model_folder: str) -> None:
    short = load_model(tiny_model_folder, torch.float32)
    short.config.max_position_embeddings = 32
    short.save_pretrained(tmp_path / "short")
    load_tokenizer(tiny_model_folder).save_pretrained(tmp_path / "short")
    require_teacher(str(tmp_path / "short"), tiny_model_folder, 32)
    with pytest.raises(UserError, match="has a context length of 32 tokens, but rows have 64"):
        fitted(tmp_path, corpus, tiny_model_folder, distillation=Distillation(str(tmp_path / "short")))


def test_how_often_the_replayed_text_is_taken_is_reported(tmp_path: Path, corpus: Path, tiny_model_folder: str) -> None:
    learner = fitted(tmp_path, corpus, tiny_model_folder)
    told = Provenance(tmp_path).origin(learner.trainer).training["passes"]
    own, replayed = re.fullmatch(r"(\S+) passes over the training rows, (\S+) over the replayed rows", told).groups()  # type: ignore[union-attr]
    rows = learner.trainer.datamodule.mixture
    taken = rows.n_own * float(own) + (len(rows.rows.n_tokens) - rows.n_own) * float(replayed)
    assert taken == pytest.approx(learner.trainer.datamodule.total_rows, rel=0.01)
