"""Added tokens are trained by themselves, and all else stays bit by bit what it was."""

from pathlib import Path

import pytest
import torch
from corpus import data_module, fit, module

from inscp.callbacks.provenance import Provenance, run_name
from inscp.commands.extend import extend
from inscp.errors import UserError
from inscp.model.adapters import LoRA
from inscp.model.module import InsCPModule
from inscp.model.new_tokens import first_new_token
from inscp.model.optim import Optimizer
from inscp.pretrained import load_model, load_tokenizer


@pytest.fixture(scope="module")
def longer(tmp_path_factory: pytest.TempPathFactory, corpus: Path, tiny_model_folder: str) -> str:
    """A model with thirty tokens more."""
    folder = str(tmp_path_factory.mktemp("longer") / "model")
    extend(tiny_model_folder, str(corpus), folder, tokens=30)
    return folder


@pytest.mark.parametrize("tied", [False, True])
def test_new_rows_are_trained_and_nothing_else(longer: str, corpus: Path, tmp_path: Path, tied: bool) -> None:
    spec = longer
    if tied:
        model = load_model(spec, torch.float32)
        model.config.tie_word_embeddings = True
        model.tie_weights()
        model.save_pretrained(tmp_path / "tied")
        for file in ("inscp.json", *(path.name for path in Path(spec).glob("tokenizer*")), "chat_template.jinja"):
            (tmp_path / "tied" / file).write_bytes((Path(spec) / file).read_bytes())
        spec = str(tmp_path / "tied")
    learner = InsCPModule(spec, Optimizer(learning_rate=0.01, weight_decay=0.1), new_tokens_only=True)
    data = data_module(corpus, spec)
    fit(tmp_path, data, learner=learner)
    before, first = load_model(spec, torch.float32).state_dict(), first_new_token(spec)
    assert first == len(load_tokenizer(spec)) - 30
    assert set(learner.weights) == {"model.embed_tokens.weight"} | (set() if tied else {"lm_head.weight"})
    for name, weight in learner.loss.model.state_dict().items():
        if name in learner.weights or (tied and name == "lm_head.weight"):
            assert torch.equal(weight[:first], before[name][:first])
            assert (weight[first : first + 30] != before[name][first : first + 30]).any(1).all()
        else:
            assert torch.equal(weight, before[name])
    assert run_name(learner, data).startswith("Extended + InsCP, new tokens alone")
    assert Provenance(tmp_path).origin(learner.trainer).training["trained"] == "the new tokens alone"


def test_nobody_trains_new_tokens_where_there_are_none_or_beside_something_else(
    tiny_model_folder: str, longer: str, corpus: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"model\.new_tokens_only: no tokens were added to .* extend"):
        fit(tmp_path, data_module(corpus, tiny_model_folder), learner=module(tiny_model_folder, new_tokens_only=True))
    with pytest.raises(UserError, match=r"model\.new_tokens_only: nothing else is trained"):
        InsCPModule(longer, new_tokens_only=True, adapter=LoRA())
