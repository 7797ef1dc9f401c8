"""`doctor` as a user runs it: the machine, trainings that fit and that do not, and the estimate against real ones."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from corpus import write_corpus
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, Phi3Config

from inscp.__main__ import main
from inscp.commands import machine
from inscp.model.native import compiled

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to compare with")
MODEL_PARTS = ("weights", "gradients", "optimizer states", "weight average", "activations")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("doctor")
    write_corpus(folder, records=400)
    return folder


@pytest.fixture
def doctor(project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    """Runs the command in this process: status, what it prints, what it complains."""
    monkeypatch.chdir(project)

    def run(model: object, *changes: str) -> tuple[int, str, str]:
        status = main(["doctor", "--model.pretrained", str(model), "--data.train", "corpus.jsonl", *changes])
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def small_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the process itself holds can be given to the training; of the tests' process that may be anything."""
    monkeypatch.setattr("inscp.commands.resources.psutil.Process",
                        lambda: SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=0)))  # fmt: skip


def llama(folder: Path, **sizes: int) -> Path:
    """A config.json without weights or tokenizer."""
    LlamaConfig(architectures=["LlamaForCausalLM"], **sizes).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (["--trainer.precision", "16-mixed"], "trainer.precision: 16-mixed is not supported"),
        (["--trainer.max_epochs", "3"], "trainer.max_epochs: the length of a run"),
        (["--trainer.strategy", "deepspeed"], "trainer.strategy: deepspeed is not supported"),
        (["--model.distillation", "{}"], "model.distillation: it needs replayed rows"),
    ],
)
def test_what_fit_refuses_does_not_fit(doctor, tmp_path: Path, changes: list[str], complaint: str) -> None:  # type: ignore[no-untyped-def]
    status, _, told = doctor(llama(tmp_path), *changes)
    assert (status, told.startswith(f"error: {complaint}")) == (2, True)


def test_rows_that_fit_refuses_do_not_fit(doctor, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [8.0] * 4}
    sizes = {"hidden_size": 64, "num_attention_heads": 8, "num_hidden_layers": 1, "intermediate_size": 64}
    Phi3Config(
        architectures=["Phi3ForCausalLM"], original_max_position_embeddings=32, rope_parameters=rope, **sizes
    ).save_pretrained(tmp_path)
    status, _, complaint = doctor(tmp_path, "--data.row_length", "33")
    assert (status, complaint.count("\n")) == (2, 1)
    assert "Set data.row_length to 32." in complaint
    status, printed, _ = doctor(tmp_path, "--data.row_length", "32")
    assert status == 0, printed


@pytest.fixture(scope="module")
def llama_8b(project: Path) -> Path:
    return llama(
        project / "8b", vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=8,
    )  # fmt: skip


def gib(printed: str, label: str) -> float:
    found = re.search(rf"^  {label}.*?([\d.,]+) GiB$", printed, re.MULTILINE)
    assert found, printed
    return float(found[1].replace(",", ""))


def test_it_says_how_to_get_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert re.search(r"^C\+\+ compiler +ok ", machine.report(), re.MULTILINE)
    monkeypatch.setenv("CXX", "no-such-compiler")
    compiled.cache_clear()
    [line] = (line for line in machine.report().splitlines() if line.startswith("C++ compiler"))
    compiled.cache_clear()
    assert "no-such-compiler: it cannot make a library" in line
    assert line.endswith("Install a C++ compiler (g++), or name one in CXX.")


def test_without_a_configuration_it_describes_the_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    attention = r"(?:C\+\+ compiler|sdpa)"
    for name in ("CPU", "bf16", "torch", "transformers", "lightning", attention, "peft", "cache", "outputs"):
        assert re.search(rf"^{name} +(ok|–) ", printed, re.MULTILINE)


def test_the_limit_of_a_container_counts(tmp_path: Path) -> None:
    for name, text in {
        "memory.max": "1000",
        "memory.current": "700",
        "memory.stat": "inactive_file 200\nanon 5",
    }.items():
        (tmp_path / name).write_text(f"{text}\n", "utf-8")
    assert machine.cpu_memory(tmp_path) == (1000, 500)
    (tmp_path / "memory.max").write_text("max\n", "utf-8")
    assert machine.cpu_memory(tmp_path)[0] > 2**28


def test_a_small_training_fits(doctor, tiny_model_folder: str) -> None:  # type: ignore[no-untyped-def]
    status, printed, complaint = doctor(tiny_model_folder, "--trainer.accelerator", "cpu")
    assert (status, complaint) == (0, "")
    needed, available = gib(printed, "needed on the CPU"), gib(printed, "available there")
    assert sum(gib(printed, part) for part in (*MODEL_PARTS, "the process itself")) == pytest.approx(needed, abs=0.04)
    assert 0.1 < needed < available


@without_gpu
def test_eight_shards_of_8b_on_gpus_that_are_not_here(doctor, llama_8b: Path) -> None:  # type: ignore[no-untyped-def]
    changes = ["--trainer.accelerator", "gpu", "--trainer.devices", "8", "--model.activation_checkpointing", "block"]
    status, printed, _ = doctor(llama_8b, *changes)
    assert status == 0
    assert "rank 1 of 8, FSDP2, bf16-mixed" in printed
    assert gib(printed, "weights") == pytest.approx(8.03e9 * 4 / 8 / 2**30, rel=0.01)
    assert gib(printed, "optimizer states") == pytest.approx(8.03e9 * 8 / 8 / 2**30, rel=0.01)
    assert gib(printed, "needed on the GPU") < 30
    card = re.search(r"^needs a GPU with (\d+) GB; for a smaller one: lower data", printed, re.M)
    assert card
    assert gib(printed, "needed on the GPU") < int(card[1]) <= 32
    found = re.search(
        r"^100,000,000 tokens: (\S+) FLOPs, (\S+) H100 hours at 40% of its peak rate \(by formula\)$", printed, re.M
    )
    assert found
    assert float(found[1]) == pytest.approx(8 * 7.5e9 * 1e8, rel=0.05)  # four passes; the input embedding is looked up
    assert float(found[2]) == pytest.approx(float(found[1]) / (0.4 * 989e12) / 3600, rel=0.02)


@without_gpu
def test_a_second_model_that_is_asked_counts_where_it_is_the_most(doctor, llama_8b: Path) -> None:  # type: ignore[no-untyped-def]
    lora = ["--trainer.accelerator", "gpu", "--trainer.devices", "1", "--data.row_length", "512",
            "--model.adapter", "LoRA"]  # fmt: skip
    asking = ["--before_after.prompts", "samples:zh_tw/aligned_prompts.jsonl", "--before_after.languages", "[en]"]
    needed = "needed on the GPU"
    (_, alone, _), (_, asked, _) = doctor(llama_8b, *lora), doctor(llama_8b, *lora, *asking)
    assert gib(asked, needed) == pytest.approx(2 * gib(alone, "weights") + gib(alone, "optimizer states"), rel=0.01)
    assert gib(asked, needed) > gib(alone, needed)
    assert "set before_after.prompts to null" in asked
    assert "before_after" not in alone


@without_gpu
def test_shards_in_cpu_memory_ask_for_a_host_of_all_its_ranks(doctor, llama_8b: Path) -> None:  # type: ignore[no-untyped-def]
    changes = ["--trainer.strategy", "FSDP2", "--trainer.strategy.cpu_offload", "true"]
    status, printed, _ = doctor(llama_8b, "--trainer.accelerator", "gpu", "--trainer.devices", "8", *changes)
    assert status == 0
    host = re.search(r"^needs a host with ([\d.]+) GiB of memory$", printed, re.M)
    assert host
    assert float(host[1]) == pytest.approx(8 * gib(printed, "needed on the CPU"), abs=0.1)
    assert printed.count("for a smaller one") == 1


@pytest.mark.usefixtures("small_process")
def test_shards_that_do_not_fit_are_not_fixed_by_smaller_batches(doctor, llama_8b: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("inscp.commands.resources.cpu_memory", lambda: (2**34, 2**34))
    status, _, complaint = doctor(llama_8b, "--trainer.accelerator", "cpu", "--data.batch_size", "8")
    assert status == 2
    said = r"^error: model\.adapter: a rank needs [\d.]+ GiB .* 16\.\d+ GiB are available\. Train a model\.adapter"
    assert re.search(said, complaint, re.MULTILINE)


@pytest.mark.parametrize(("changes", "key"), [
    (["--data.batch_size", "64"], "data.batch_size"),
    ([], "model.activation_checkpointing"),
    (["--model.activation_checkpointing", "block"], "data.row_length"),
])  # fmt: skip
@pytest.mark.usefixtures("small_process")
def test_what_does_not_fit_is_reported_with_the_key_to_change(  # type: ignore[no-untyped-def]
    doctor, tiny_model_folder: str, monkeypatch: pytest.MonkeyPatch, changes: list[str], key: str
) -> None:
    monkeypatch.setattr("inscp.commands.resources.cpu_memory", lambda: (2**21, 2**21))
    status, _, complaint = doctor(tiny_model_folder, "--trainer.accelerator", "cpu", *changes)
    assert status == 2
    errors = [line for line in complaint.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert errors[0].startswith(f"error: {key}: a rank needs ")


def test_a_full_disk_is_a_warning(doctor, tiny_model_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("inscp.commands.resources.free_disk", lambda folder: 1000)
    status, _, complaint = doctor(tiny_model_folder, "--trainer.accelerator", "cpu")
    assert status == 0
    assert re.fullmatch(r"warning: checkpoint\.keep_last: 3 x .* at outputs\n", complaint)


@pytest.mark.parametrize(("layers", "how"), [(10, "block"), (16, "none")])
def test_the_estimate_is_near_a_real_trainings_peak(
    project: Path, tiny_model_folder: str, layers: int, how: str
) -> None:
    """Of models large enough that tensors outweigh the process: 52 and 83 M parameters."""
    folder = project / f"{layers}_layers"
    if not folder.exists():
        tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=640, intermediate_size=1792, num_hidden_layers=layers,
            num_attention_heads=10, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    settings = ["--model.pretrained", str(folder), "--data.train", "corpus.jsonl", "--data.row_length", "512"]
    settings += [
        "--data.batch_size",
        "2",
        "--model.activation_checkpointing",
        how,
        "--trainer.accelerator",
        "cpu",
    ]
    estimated = gib(run(project, "doctor", *settings)[0], "needed on the CPU")
    short = ["--trainer.max_steps", "3", "--before_after.prompts", "null", "--mlflow.enabled", "false"]
    _, peak = run(project, "fit", *settings, *short)
    assert estimated == pytest.approx(peak, rel=0.15)


def run(folder: Path, *arguments: str) -> tuple[str, float]:
    """A command in a process of its own: what it prints, and the process's peak in GiB."""
    # glibc returns freed blocks of 1 MiB and more at once, so that the peak is of what is alive, not of what it keeps.
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "MALLOC_MMAP_THRESHOLD_": str(2**20)}
    command = [sys.executable, "-m", "inscp", *arguments]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        printed = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return printed, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 2**30
