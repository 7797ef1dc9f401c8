"""A shield freezes the columns that matter most to the source text, exactly and for good, and only those."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from corpus import data_module, fit, trainer
from lightning.pytorch.plugins import Precision
from safetensors.torch import load_file
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from inscp.callbacks.checkpoints import Checkpoints
from inscp.callbacks.export import ExportAtEnd
from inscp.callbacks.provenance import Provenance
from inscp.data.pipeline import Pipeline
from inscp.data.sources import Source
from inscp.data.template import ChatTemplate
from inscp.errors import UserError
from inscp.model.adapters import LoRA
from inscp.model.module import InsCPModule
from inscp.model.optim import Optimizer
from inscp.model.origin import read_origin
from inscp.model.shield import FrozenColumns, Shield
from inscp.model.strategies import FSDP2
from inscp.pretrained import load_model, load_tokenizer

PAIRS = [(f"What is {i} and {i}?", "Of course " * (i % 3) + f"it is {2 * i}.") for i in range(12)]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("source") / "english.jsonl"
    lines = [json.dumps({"question": question, "answer": answer}) for question, answer in PAIRS]
    path.write_text("\n".join(lines), "utf-8")
    return str(path)


@pytest.fixture(scope="module")
def original_folder(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: str) -> str:
    """The tiny model, whose padding token is embedded in numbers that are not 0, as those of real models are."""
    folder = tmp_path_factory.mktemp("original") / "tiny-llama"
    model, tokenizer = load_model(tiny_model_folder, torch.float32), load_tokenizer(tiny_model_folder)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model.model.embed_tokens.weight[tokenizer.pad_token_id] = torch.randn(32)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def fitted(folder: Path, corpus: Path, model: str, source: str, **options: Any) -> InsCPModule:
    """A training with weight decay, an average and a shield, which leaves checkpoints and a model."""
    optimizer = Optimizer(learning_rate=1e-2, warmup=0.0, weight_decay=0.1)
    learner = InsCPModule(model, optimizer, shield=Shield(source, records=10), ema_decay=0.5)
    provenance = Provenance(folder)
    saving = Checkpoints(str(folder / "kept"), every_n_steps=3, keep_last=99)
    exporting = ExportAtEnd(folder / "model", provenance, saving)
    data = data_module(corpus, model, row_length=192, epochs=4.0)
    fit(folder, data, provenance, exporting, saving, learner=learner, **options)
    return learner


@pytest.fixture(scope="module")
def run(
    tmp_path_factory: pytest.TempPathFactory, corpus: Path, original_folder: str, source: str
) -> tuple[Path, InsCPModule]:
    folder = tmp_path_factory.mktemp("run")
    return folder, fitted(folder, corpus, original_folder, source)


def test_the_frozen_columns_are_those_of_the_definition(run: tuple[Path, InsCPModule], original_folder: str) -> None:
    """|W| x the norm of the inputs, summed over each column, from every conversation by itself."""
    model, tokenizer = load_model(original_folder, torch.float32), load_tokenizer(original_folder)
    inputs: dict[str, list[torch.Tensor]] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            module.register_forward_pre_hook(
                lambda _, given, name=name: inputs.setdefault(name, []).append(given[0][0])
            )
    first, between, _ = ChatTemplate(tokenizer).literals(("user", "assistant"))
    for question, answer in PAIRS[:10]:
        said = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (question, answer)]
        ids = [*first.ids, *said[0], *between.ids, *said[1], *ChatTemplate(tokenizer).after_assistant]
        with torch.no_grad():
            model(input_ids=torch.tensor([ids]))
    frozen = run[1].frozen
    assert frozen is not None
    assert len(frozen.tensors) == len(inputs) == 14  # seven matrices a block
    for name, given in inputs.items():
        weight = model.get_submodule(name).weight
        scores = (weight.detach().abs() * torch.cat(given).norm(dim=0)).sum(0)
        expected = scores >= scores.sort(descending=True).values[len(scores) // 2 - 1]
        assert torch.equal(frozen.tensors[f"{name}.weight"], expected)


def test_the_columns_are_chosen_in_the_precision_that_trains(
    tmp_path: Path, corpus: Path, original_folder: str, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under DDP autocast makes it; on a GPU attention by document has no fp32 kernel."""
    computes, choose = [], FrozenColumns.choose
    monkeypatch.setattr(Precision, "forward_context", lambda _: torch.autocast("cpu", torch.bfloat16))
    monkeypatch.setattr(
        FrozenColumns,
        "choose",
        lambda *given: computes.append(torch.is_autocast_enabled("cpu")) or choose(*given),
    )
    fitted(tmp_path, corpus, original_folder, source, max_steps=1)
    assert computes == [True]


def test_choosing_leaves_the_model_as_it_was(tmp_path: Path, original_folder: str, source: str) -> None:
    learner = InsCPModule(original_folder, shield=Shield(source, records=2))
    learner.trainer = trainer(tmp_path)
    learner.configure_model()
    assert learner.frozen is not None
    rows = Shield(source, records=2).read(
        lambda sources, tagger: Pipeline(sources, load_tokenizer(original_folder), tagger, 64)
    )
    learner.frozen.choose(0.5, learner.loss, rows, torch.device("cpu"))
    assert learner.loss.training, "with dropout, where there is some"
    assert not any(module._forward_pre_hooks for module in learner.loss.modules())


def test_frozen_columns_are_as_before_bit_by_bit_and_all_else_is_trained(
    run: tuple[Path, InsCPModule], original_folder: str
) -> None:
    folder, learner = run
    assert learner.frozen is not None
    assert learner.average is not None
    original = load_model(original_folder, torch.float32).state_dict()
    exported = load_file(folder / "model" / "model.safetensors")
    for name, weight in learner.weights.items():
        columns = learner.frozen.tensors.get(name, torch.zeros(weight.shape[-1], dtype=torch.bool))
        for trained in (weight.detach(), learner.average.tensors[name]):
            same = trained == original[name]
            assert same[..., columns].all()
            assert same[..., ~columns].float().mean() < 0.05
        assert torch.equal(exported[name][..., columns], original[name].bfloat16()[..., columns])


def test_of_each_source_no_more_records_are_read_than_it_and_the_shield_allow() -> None:
    read: list[int | None] = []

    def make(sources: list[Source], _: Any) -> Any:
        read.extend(source.limit for source in sources)
        return SimpleNamespace(rows=list)

    Shield([Source("a", limit=3), Source("b", limit=30), "c"], records=10).read(make)
    assert read == [3, 10, 10]


def test_weight_decay_reaches_the_trained_columns(tmp_path: Path, original_folder: str, source: str) -> None:
    learner = InsCPModule(original_folder, Optimizer(weight_decay=0.5, learning_rate=0.1), shield=Shield(source))
    learner.trainer = trainer(tmp_path)
    learner.configure_model()
    assert learner.frozen is not None
    name, columns = next(iter(learner.frozen.tensors.items()))
    columns[:5] = True
    before = learner.weights[name].detach().clone()
    learner.frozen.apply_weight_decay(0.05)
    after = learner.weights[name].detach()
    assert torch.equal(after[:, :5], before[:, :5])
    torch.testing.assert_close(after[:, 5:], before[:, 5:] * 0.95)


def test_a_resumed_training_takes_the_columns_from_the_checkpoint(
    run: tuple[Path, InsCPModule], tmp_path: Path, corpus: Path, original_folder: str
) -> None:
    """The source text is not even read again."""
    folder, whole = run
    middle = folder / "kept" / "step-00000006"
    resumed = fitted(tmp_path, corpus, original_folder, "nowhere.jsonl", resume=middle)
    assert resumed.frozen is not None
    assert whole.frozen is not None
    for name, columns in whole.frozen.tensors.items():
        assert torch.equal(resumed.frozen.tensors[name], columns)
    for name, weight in whole.weights.items():
        assert torch.equal(resumed.weights[name], weight)


def test_the_model_says_that_it_was_shielded(run: tuple[Path, InsCPModule]) -> None:
    origin = read_origin(str(run[0] / "model"))
    assert origin is not None
    assert origin.training["shield"] == "50% of the columns of 14 matrices frozen"


def test_what_cannot_be_shielded_is_refused_in_one_line(tmp_path: Path, original_folder: str, source: str) -> None:
    with pytest.raises(UserError, match=r"model\.shield: adapters"):
        InsCPModule(original_folder, adapter=LoRA(), shield=Shield(source))
    with pytest.raises(UserError, match=r"model\.shield\.share"):
        Shield(source, share=1.0)
    learner = InsCPModule(original_folder, shield=Shield(source))
    learner.trainer = trainer(tmp_path, strategy=FSDP2(tensor_parallel=2))
    with pytest.raises(UserError, match=r"model\.shield: tensor parallelism"):
        learner.configure_model()


def test_a_model_without_linear_layers_is_refused(tmp_path: Path, source: str) -> None:
    """GPT-2's matrices are of another kind."""
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 64, "n_positions": 64}
    model = GPT2LMHeadModel(GPT2Config(**sizes))
    with pytest.raises(UserError, match=r"model\.shield: the model has no nn\.Linear"):
        FrozenColumns(model, dict(model.named_parameters()))


def test_the_columns_follow_their_matrices_to_another_device(original_folder: str) -> None:
    """Lightning moves the model when all is made; on a GPU what stayed behind would stop the first step."""
    model = load_model(original_folder, torch.float32)
    frozen = FrozenColumns(model, dict(model.named_parameters()))
    frozen.weights = {name: nn.Parameter(weight.to("meta")) for name, weight in frozen.weights.items()}
    frozen.move_masks()
    assert {columns.device.type for columns in frozen.tensors.values()} == {"meta"}


def test_a_checkpoint_of_another_shield_is_refused(
    run: tuple[Path, InsCPModule], tmp_path: Path, corpus: Path, original_folder: str, source: str
) -> None:
    learner = InsCPModule(original_folder, Optimizer(), shield=Shield(source, share=0.9), ema_decay=0.5)
    data = data_module(corpus, original_folder, row_length=192, epochs=4.0)
    with pytest.raises(UserError, match=r"model\.shield: the checkpoint was trained with 50% of the columns"):
        fit(tmp_path, data, learner=learner, resume=run[0] / "kept" / "step-00000006")
