"""What a training leaves behind is a model for anybody's tools."""

import json
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import yaml
from corpus import data_module, fit, module
from safetensors.torch import load_file
from transformers import AutoImageProcessor, Gemma3Config, Gemma3ForConditionalGeneration

from inscp import __version__
from inscp.callbacks.checkpoints import Checkpoints
from inscp.callbacks.export import ExportAtEnd
from inscp.callbacks.provenance import Provenance, run_name
from inscp.commands.export import export
from inscp.data.datamodule import InsCPDataModule
from inscp.data.mixture import Replay
from inscp.data.rendering import unrendered_opening
from inscp.data.sources import Source
from inscp.data.tagging import ConversationTagger
from inscp.data.template import ChatTemplate
from inscp.errors import RunError, UserError
from inscp.model.adapters import LoRA
from inscp.model.card import model_card
from inscp.model.checkpoint import complete_checkpoints
from inscp.model.distillation import Distillation
from inscp.model.end_tokens import end_token_ids
from inscp.model.export import assemble, export_model
from inscp.model.origin import Origin, read_origin
from inscp.pretrained import load_model, load_tokenizer

GENERATE = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
folder = sys.argv[1]
model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
inputs = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], add_generation_prompt=True,
                                       return_tensors="pt", return_dict=True)
print(model.dtype, model.generation_config.eos_token_id, model.generate(**inputs, max_new_tokens=5).shape[1])
"""


def exporting(folder: Path, every_n_steps: int | None = 1) -> tuple[Provenance, ExportAtEnd, Checkpoints]:
    """What exports a model and keeps checkpoints, both in the folder."""
    provenance = Provenance(folder)
    saving = Checkpoints(str(folder / "checkpoints"), every_n_steps=every_n_steps)
    return provenance, ExportAtEnd(folder / "model", provenance, saving), saving


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, corpus: Path, tiny_model_folder: str
) -> tuple[Path, torch.nn.Module]:
    folder, learner = tmp_path_factory.mktemp("trained"), module(tiny_model_folder)
    data = data_module(corpus, tiny_model_folder, validation={"held": str(corpus)})
    fit(folder, data, *exporting(folder), learner=learner)
    return folder, learner.model


def test_the_folder_loads_with_plain_transformers_in_another_process(trained: tuple[Path, torch.nn.Module]) -> None:
    command = [sys.executable, "-c", GENERATE, str(trained[0] / "model")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "bfloat16" in done.stdout


@pytest.mark.parametrize("is_gathered", [True, False])
def test_gathered_weights_wait_for_their_export_in_the_precision_of_its_file_and_others_are_not_copied(
    tmp_path: Path, corpus: Path, tiny_model_folder: str, monkeypatch: pytest.MonkeyPatch, is_gathered: bool
) -> None:
    waiting: dict[str, torch.Tensor] = {}

    def assembled(origin: Origin, weights: dict[str, torch.Tensor]) -> torch.nn.Module:
        waiting.update(weights)
        return assemble(origin, weights)

    monkeypatch.setattr("inscp.callbacks.export.assemble", assembled)
    if is_gathered:  # as of shards
        monkeypatch.setattr("inscp.callbacks.export.full_tensor", torch.clone)
    trained = module(tiny_model_folder)
    fit(tmp_path, data_module(corpus, tiny_model_folder, max_steps=1), *exporting(tmp_path), learner=trained)
    if is_gathered:
        written = load_file(tmp_path / "model" / "model.safetensors").values()
        assert {tensor.dtype for tensor in waiting.values()} == {tensor.dtype for tensor in written}
    else:
        assert all(waiting[name].data_ptr() == weight.data_ptr() for name, weight in trained.weights.items())


def test_the_model_says_how_often_each_source_was_seen(tmp_path: Path, corpus: Path, tiny_model_folder: str) -> None:
    data = InsCPDataModule([Source(str(corpus), weight=2)], pretrained=tiny_model_folder, row_length=64, max_steps=1)
    fit(tmp_path, data, *exporting(tmp_path))
    origin = read_origin(str(tmp_path / "model"))
    assert origin
    assert origin.training["source_weights"] == f"{corpus} 2"


def test_the_model_says_by_which_versions_it_was_trained(trained: tuple[Path, torch.nn.Module]) -> None:
    origin = read_origin(str(trained[0] / "model"))
    assert origin
    assert f"inscp {__version__}, torch {version('torch')}, " in origin.training["made_with"]


def test_a_server_of_another_user_can_read_every_file(trained: tuple[Path, torch.nn.Module]) -> None:
    assert {path.stat().st_mode & 0o777 for path in (trained[0] / "model").iterdir()} == {0o644}


def test_the_weights_are_the_trained_ones(trained: tuple[Path, torch.nn.Module], tiny_model_folder: str) -> None:
    folder, model = trained
    original = load_model(tiny_model_folder, torch.float32).state_dict()
    for name, tensor in load_file(folder / "model" / "model.safetensors").items():
        assert torch.equal(tensor, model.state_dict()[name].to(torch.bfloat16))
        assert not torch.equal(tensor, original[name].to(torch.bfloat16))


def test_generation_stops_at_the_end_of_turn_token(trained: tuple[Path, torch.nn.Module]) -> None:
    settings = json.loads((trained[0] / "model" / "generation_config.json").read_text("utf-8"))
    tokenizer = load_tokenizer(str(trained[0] / "model"))
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in settings["eos_token_id"]
    assert not settings["_from_model_config"]
    assert tokenizer.chat_template


def test_the_model_card_names_base_model_method_data_and_metrics(trained: tuple[Path, torch.nn.Module]) -> None:
    card = (trained[0] / "model" / "README.md").read_text("utf-8")
    for expected in (
        "tiny-llama",
        "arXiv 2405.20175",
        "corpus.jsonl: 40 records",
        "fingerprint",
        "| held |",
        "1e-02|0.01",
    ):
        assert any(choice in card for choice in expected.split("|") if choice.strip()), expected


def test_the_card_names_every_licence_that_is_known(tiny_model_folder: str, tmp_path: Path) -> None:
    original = shutil.copytree(tiny_model_folder, tmp_path / "original")
    (original / "README.md").write_text("---\nlicense: llama3\n---\n# A model\n", "utf-8")
    report = {"tokens": 9, "sequences": 3, "rows": 1, "padding": 0.1, "fingerprint": "f",
              "records": {"a.jsonl": 1, "b.jsonl": 2}, "licences": {"a.jsonl": "CC-BY-SA-4.0"}}  # fmt: skip
    card = model_card(Origin(str(original), "InsCP", "fi", data=report))
    assert yaml.safe_load(card.split("---")[1])["license"] == "llama3"
    for told in (
        "licence (llama3)",
        "a.jsonl: 1 records, licence CC-BY-SA-4.0",
        "b.jsonl: 2 records, licence not stat",
    ):
        assert told in card
    (original / "README.md").write_text('---\nlicense: "ours: see LICENSE"\n---\n', "utf-8")
    card = model_card(Origin(str(original), "InsCP", "fi"))
    assert yaml.safe_load(card.split("---")[1])["license"] == "ours: see LICENSE"
    (original / "README.md").write_text("---\nlicense: [\n---\n", "utf-8")
    assert "license" not in yaml.safe_load(model_card(Origin(str(original), "InsCP", "fi")).split("---")[1])


def test_a_second_stage_knows_the_first_original_and_its_card_shows_both(
    trained: tuple[Path, torch.nn.Module], tiny_model_folder: str, tmp_path: Path
) -> None:
    """Continual pre-training, then fine-tuning on pairs."""
    first = str(trained[0] / "model")
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("\n".join(f'{{"question": "{i}?", "answer": "{i}!"}}' for i in range(9)), "utf-8")
    data = data_module(pairs, first, tagger=ConversationTagger(), language="fi")
    learner = module(first)
    assert run_name(learner, data) == "InsCP + SFT tiny-llama fi"
    fit(tmp_path, data, *exporting(tmp_path), learner=learner)
    export(str(complete_checkpoints(tmp_path / "checkpoints")[0][0]), str(tmp_path / "again"))
    for folder in ("model", "again"):
        origin = read_origin(str(tmp_path / folder))
        assert origin is not None
        assert (origin.pretrained, origin.original, origin.arms) == (first, tiny_model_folder, "InsCP + SFT")
        card = (tmp_path / folder / "README.md").read_text("utf-8")
        for expected in ("# tiny-llama, adapted to fi (InsCP + SFT)", "## Stage 1, InsCP: data", "corpus.jsonl: 40",
                         "## Stage 2, SFT: settings", "pairs.jsonl: 9"):  # fmt: skip
            assert expected in card


def test_export_of_a_checkpoint_gives_the_same_bytes(
    trained: tuple[Path, torch.nn.Module], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export(str(complete_checkpoints(trained[0] / "checkpoints")[0][0]), str(tmp_path / "again"))
    assert str(tmp_path / "again") in capsys.readouterr().out
    for name in ("model.safetensors", "config.json", "generation_config.json", "tokenizer.json"):
        assert (tmp_path / "again" / name).read_bytes() == (trained[0] / "model" / name).read_bytes()


def test_a_tied_embedding_is_written_once(tiny_model_folder: str, tmp_path: Path) -> None:
    model = load_model(tiny_model_folder, torch.float32)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    export_model(model, load_tokenizer(tiny_model_folder), tmp_path / "tied", Origin(tiny_model_folder, "InsCP", "fi"))
    assert "lm_head.weight" not in load_file(tmp_path / "tied" / "model.safetensors")


def test_what_has_to_stay_fp32_does_and_every_template_can_be_read(tiny_model_folder: str, tmp_path: Path) -> None:
    model, tokenizer = load_model(tiny_model_folder, torch.float32), load_tokenizer(tiny_model_folder)
    model._keep_in_fp32_modules_strict = {"norm"}
    model.register_buffer("seen", torch.tensor([2**20 + 1]))
    tokenizer.chat_template = {"default": tokenizer.chat_template, "tools": "{{ messages }}"}
    export_model(model, tokenizer, tmp_path / "exact", Origin(tiny_model_folder, "InsCP", "fi"))
    stored = load_file(tmp_path / "exact" / "model.safetensors")
    assert (stored["model.norm.weight"].dtype, stored["seen"].item()) == (torch.float32, 2**20 + 1)
    assert stored["model.layers.0.input_layernorm.weight"].dtype == torch.bfloat16
    folders = [path for path in (tmp_path / "exact").rglob("*") if path.is_dir()]
    assert len(folders) == 1
    assert all(path.stat().st_mode & 0o555 == 0o555 for path in folders)


@pytest.mark.parametrize(
    ("spec", "base_model"),
    [
        ("org/name", "org/name"),
        ("org/name@main", "org/name"),
        ("/data/name", None),
        ("../base/name", None),
        ("gpt2", None),
    ],
)
def test_the_card_is_one_that_the_hub_takes(spec: str, base_model: str | None) -> None:
    front = yaml.safe_load(model_card(Origin(spec, "InsCP", "no")).split("---")[1])
    assert (front.get("base_model"), front["language"]) == (base_model, "no")


def test_the_card_shows_what_a_server_leaves_out_before_an_answer(tiny_model_folder: str, tmp_path: Path) -> None:
    """As of R1, whose template opens the reasoning that is closed here."""
    model, tokenizer = load_model(tiny_model_folder, torch.float32), load_tokenizer(tiny_model_folder)
    assert not unrendered_opening(tokenizer)
    plain = tokenizer.chat_template
    tokenizer.chat_template = plain + "{{ '<think> ' if add_generation_prompt }}"
    assert unrendered_opening(tokenizer) == "\n\n</think>\n\n"
    tokenizer.chat_template = plain + "{{ '<think>\n' if add_generation_prompt }}"
    export_model(model, tokenizer, tmp_path / "model", Origin(tiny_model_folder, "InsCP", "fi"))
    card = (tmp_path / "model" / "README.md").read_text("utf-8")
    assert r"trained to answer after `\n</think>\n\n`, which its chat template does not add to the prompt" in card


@pytest.mark.parametrize("may_reason", [False, True])
def test_the_card_s_code_runs_and_asks_without_reasoning(tiny_model_folder: str, tmp_path: Path, may_reason) -> None:
    tokenizer = load_tokenizer(tiny_model_folder)
    if may_reason:
        refusal = "{% if enable_thinking | default(true) %}{{ raise_exception('it would reason') }}{% endif %}"
        tokenizer.chat_template = refusal + str(tokenizer.chat_template)
    model = load_model(tiny_model_folder, torch.float32)
    export_model(model, tokenizer, tmp_path / "model", Origin(tiny_model_folder, "InsCP", "fi"))
    card = (tmp_path / "model" / "README.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    exec(code.replace("path/to/this/folder", str(tmp_path / "model")), {})
    assert ("chat_template_kwargs" in card) == may_reason


def test_an_existing_folder_is_not_overwritten(trained: tuple[Path, torch.nn.Module], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match="already exists"):
        export(str(complete_checkpoints(trained[0] / "checkpoints")[0][0]), str(tmp_path / "mine"))
    assert list((tmp_path / "mine").iterdir()) == []


def test_a_folder_that_is_no_checkpoint_is_reported_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such checkpoint"):
        export(str(tmp_path), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_exported_is_kept_as_a_checkpoint(tmp_path: Path, corpus: Path, tiny_model_folder: str) -> None:
    (tmp_path / "model").touch()  # as a full disk would, it stands in the way
    with pytest.raises(RunError, match="python -m inscp export --checkpoint") as told:
        fit(tmp_path, data_module(corpus, tiny_model_folder, max_steps=1), *exporting(tmp_path, every_n_steps=None))
    kept = str(told.value).partition("--checkpoint ")[2].split()[0]
    export(kept, str(tmp_path / "exported"))
    assert (tmp_path / "exported" / "model.safetensors").is_file()


def test_a_template_that_cannot_be_tagged_with_can_be_exported(tiny_model_folder: str) -> None:
    model, tokenizer = load_model(tiny_model_folder, torch.float32), load_tokenizer(tiny_model_folder)
    before = end_token_ids(model, tokenizer)
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    assert set(end_token_ids(model, tokenizer)) <= set(before)


def test_whatever_closes_an_answer_ends_one(tiny_model_folder: str) -> None:
    """As Phi-4-mini's template has it: behind every turn `<|end|>`, and behind the last one two tokens."""
    model, tokenizer = load_model(tiny_model_folder, torch.float32), load_tokenizer(tiny_model_folder)
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer.chat_template = (
        "{% for turn in messages %}<|im_start|>{{ turn.role }}\n{{ turn.content }}<|im_end|>{% endfor %}"
        "{{ '<|im_start|>assistant\n' if add_generation_prompt else '<|endoftext|>' }}"
    )
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    template = ChatTemplate(tokenizer)
    assert tokenizer.convert_ids_to_tokens(template.end_of_turn_id) == "<|endoftext|>"
    ends = tokenizer.convert_ids_to_tokens(end_token_ids(model, tokenizer))
    assert {"<|im_end|>", "<|endoftext|>"} <= set(ends)


def test_runs_of_one_method_are_distinguished_by_name(corpus: Path, tiny_model_folder: str) -> None:
    plain = data_module(corpus, tiny_model_folder, language="fi")
    mixed = data_module(corpus, tiny_model_folder, language="fi", replay=Replay(str(corpus), 0.2))
    one = run_name(module(tiny_model_folder, adapter=LoRA(), ema_decay=0.9), plain)
    assert one == "InsCP, LoRA, EMA tiny-llama fi"
    assert run_name(module(tiny_model_folder), mixed) == "InsCP, replay tiny-llama fi"
    taught = module(tiny_model_folder, distillation=Distillation())
    assert run_name(taught, mixed) == "InsCP, distilled tiny-llama fi"


def test_what_prepares_images_comes_along(tmp_path: Path, tiny_model_folder: str) -> None:
    tokenizer, source = load_tokenizer(tiny_model_folder), tmp_path / "source"
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**size, "vocab_size": len(tokenizer), "num_key_value_heads": 1, "head_dim": 8}
    tower = {**size, "image_size": 28, "patch_size": 14}
    config = Gemma3Config(text_config=text, vision_config=tower, mm_tokens_per_image=4)
    Gemma3ForConditionalGeneration(config).save_pretrained(source)
    tokenizer.save_pretrained(source)
    (source / "preprocessor_config.json").write_text('{"image_processor_type": "Gemma3ImageProcessor"}', "utf-8")
    exported = tmp_path / "model"
    export_model(load_model(str(source), torch.float32), tokenizer, exported, Origin(str(source), "InsCP", "fi"))
    assert type(AutoImageProcessor.from_pretrained(exported)).__name__.startswith("Gemma3ImageProcessor")
