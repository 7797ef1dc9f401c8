"""TRL's SFTTrainer with packing, all weights trained: a peer of `measure.py`."""

import tempfile
import time
from typing import Any

from datasets import Dataset
from loop import given, peak_kib, read_texts, report
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

options = given()
times: list[float] = []
tokens: list[int] = []


class Clock(TrainerCallback):
    def on_step_end(self, *_: Any, **__: Any) -> None:
        times.append(time.perf_counter())


class Counting(SFTTrainer):
    def training_step(self, model: Any, inputs: Any, *rest: Any) -> Any:
        tokens.append(int((inputs["labels"] != -100).sum()))
        return super().training_step(model, inputs, *rest)


trainer = Counting(
    model=options["model"],
    args=SFTConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=options["rows"],
        max_length=options["row_length"],
        max_steps=options["steps"],
        packing=True,
        bf16=options["precision"] == "bf16",
        use_cpu=options["device"] == "cpu",
        gradient_checkpointing=options["activation_checkpointing"] != "none",
        use_liger_kernel=options["device"] == "cuda",
        model_init_kwargs={"dtype": "float32", "attn_implementation": options["attention"]},
        learning_rate=1e-5,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    ),
    train_dataset=Dataset.from_dict({"text": read_texts(options["texts"])}),
    callbacks=[Clock()],
)
trainer.train()
report(times, tokens, peak_kib())
