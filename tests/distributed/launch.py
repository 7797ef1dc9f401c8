"""Real trainings in processes of their own, through the command line, and what they leave behind."""

import hashlib
import json
import os
import socket
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from corpus import write_corpus
from lightning import Callback, LightningModule, Trainer
from processes import ROOT, Command
from transformers import AutoModelForCausalLM, MixtralConfig, PretrainedConfig

from inscp.pretrained import load_tokenizer

PATH = os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tests" / "distributed")))
FSDP2 = ["--trainer.devices", "2", "--trainer.strategy", "fsdp2"]
DDP = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
HALF = ["--data.batch_size", "1"]
TWO = [*FSDP2, *HALF]
SHARDS = ["--trainer.devices", "2", "--trainer.strategy", "inscp.model.strategies.FSDP2"]
"""FSDP2, to be given options."""
SPREADS: dict[str, list[Any]] = {
    "fsdp2": TWO,
    "ddp": [*DDP, *HALF],
    "hsdp_offload": [*SHARDS, "--trainer.strategy.replicate", 2, "--trainer.strategy.cpu_offload", "true", *HALF],
    "tensor_parallel": [*SHARDS, "--trainer.strategy.tensor_parallel", 2],
}


SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
EXPERTS = MixtralConfig(**SIZES, num_local_experts=4, router_jitter_noise=0.0)
"""Its files hold every expert by itself, its parameters all in one."""


class StepLog(Callback):
    """Appends to a file of each rank, for every optimizer step: its number, loss, learning rate, gradient norm, rows.

    Args:
        path: of the file, without the rank.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._rows: list[str] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        filled = batch.input_ids[(batch.targets >= 0).any(1)]
        self._rows += [hashlib.md5(row.numpy().tobytes()).hexdigest() for row in filled]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        names = ("train/loss", "train/lr", "train/grad_norm")
        values = [float(trainer.callback_metrics[name]) for name in names]
        with Path(f"{self._path}.{trainer.global_rank}").open("a", encoding="utf-8") as file:
            file.write(json.dumps([trainer.global_step, values, self._rows]) + "\n")
        self._rows = []


def random_model(folder: Path, config: PretrainedConfig, like: str) -> str:
    """A model with random weights and the tokenizer of another one."""
    tokenizer = load_tokenizer(like)
    config.vocab_size, config.pad_token_id, config.bos_token_id = len(tokenizer), tokenizer.pad_token_id, None
    config.eos_token_id = tokenizer.eos_token_id
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def project(folder: Path, model: str) -> Path:
    """A folder with a configuration, two sources and a held-out set."""
    folder.mkdir(parents=True, exist_ok=True)
    write_corpus(folder)
    (folder / "more.jsonl").write_text(
        "\n".join(json.dumps({"text": f"{i} on luku. " * (1 + i % 3)}) for i in range(20)), "utf-8"
    )
    (folder / "small.yaml").write_text(
        f"""
model: {{pretrained: {model}, optimizer: {{learning_rate: 0.001, warmup: 0.1}}}}
data:
  train: [corpus.jsonl, more.jsonl]
  language: fi
  row_length: 64
  batch_size: 2
  epochs: 2.0
  validation: {{held: more.jsonl}}
trainer: {{accelerator: cpu, devices: 1, precision: 32-true, accumulate_grad_batches: 2}}
checkpoint: {{every_n_steps: 2, keep_last: 99}}
mlflow: {{enabled: false}}
""",
        "utf-8",
    )
    return folder


def start(folder: Path, log: str, *arguments: Any, **environment: str) -> Command:
    """Start a training, in the folder {log}_runs, and leave it to Lightning to start other ranks, as a shell does."""
    callback = json.dumps([{"class_path": "launch.StepLog", "init_args": {"path": str(folder / log)}}])
    here = ("--trainer.default_root_dir", f"{log}_runs")
    given = ("--config", "small.yaml", "--trainer.callbacks", callback, *here, *arguments)
    return Command("fit", *given, cwd=folder, **{"PYTHONPATH": PATH, "GLOO_SOCKET_IFNAME": "lo"} | environment)


def fit(folder: Path, log: str, *arguments: Any, status: int = 0) -> Command:
    """Run a training to its end and see the exit status of its first rank."""
    is_spread = "--trainer.devices" in arguments and arguments[arguments.index("--trainer.devices") + 1] == "2"
    return together(partial(start, folder, log, *arguments), 2 if is_spread else 1, status)


def together(begin: Callable[..., Command], ranks: int, status: int = 0) -> Command:
    """Run a command on so many ranks, all started at once as torchrun does; `begin` takes their environment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks),
              "LOCAL_WORLD_SIZE": str(ranks), "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test"}  # fmt: skip
    places = [shared | {"RANK": str(n), "LOCAL_RANK": str(n)} for n in range(ranks)] if ranks > 1 else [{}]
    processes = [begin(**place) for place in places]
    try:
        assert processes[0].wait() == status, processes[0].stderr[-4000:]
        for process in processes[1:]:
            process.wait(timeout=30)
    finally:
        for process in processes:
            process.kill()
    return processes[0]


def steps(folder: Path, log: str, rank: int = 0) -> dict[int, list[float]]:
    """Step -> loss, learning rate and gradient norm; of a step that was trained twice, the later."""
    return {step: values for step, values, _ in _lines(folder, log, rank)}


def require_equal(found: dict[int, list[float]], expected: dict[int, list[float]], rel: float = 1e-5) -> None:
    """The same steps, and each as it should be."""
    assert expected
    assert found == {step: pytest.approx(values, rel=rel) for step, values in expected.items()}


def rows(folder: Path, log: str, ranks: Iterable[int] = (0,)) -> dict[int, list[str]]:
    """Step -> the rows of all ranks, sorted; of a step that was trained twice, the later."""
    found: dict[int, list[str]] = {}
    for rank in ranks:
        for step, seen in {step: seen for step, _, seen in _lines(folder, log, rank)}.items():
            found[step] = sorted(found.get(step, []) + seen)
    return found


def _lines(folder: Path, log: str, rank: int) -> list[Any]:
    path = folder / f"{log}.{rank}"
    text = path.read_text("utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.splitlines() if line.endswith("]")]
