"""FSDP2 over two real processes trains as one process does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from corpus import write_corpus

from inscp.commands.export import export

TESTS = Path(__file__).parents[1]
SCRIPT = """
import json, sys
from pathlib import Path
from corpus import Losses, data_module, module, trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from inscp.callbacks.export import ExportAtEnd
from inscp.callbacks.provenance import Provenance

if __name__ == "__main__":
    folder, model, ranks = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    strategy = ModelParallelStrategy(data_parallel_size=ranks, tensor_parallel_size=1) if ranks > 1 else "auto"
    losses, provenance = Losses(), Provenance()
    saving = ModelCheckpoint(folder / f"kept{ranks}", filename="last", every_n_train_steps=1)
    run = trainer(folder, devices=ranks, strategy=strategy, accumulate_grad_batches=2, enable_checkpointing=True,
                  callbacks=[provenance, losses, ExportAtEnd(folder / f"model{ranks}", provenance), saving])
    (folder / "one.jsonl").write_text('{"text": "The sea is blue."}')  # fewer rows than ranks
    data = data_module(folder / "corpus.jsonl", model, batch_size=4 // ranks, epochs=6.0,
                       validation={"one": str(folder / "one.jsonl")})
    run.fit(module(model), datamodule=data)
    if run.is_global_zero:
        (folder / f"losses{ranks}.json").write_text(json.dumps(list(losses.steps.values())))
        (folder / f"held_out{ranks}.json").write_text(json.dumps(run.lightning_module.held_out))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: str) -> Path:
    folder = tmp_path_factory.mktemp("distributed")
    write_corpus(folder)
    (folder / "train.py").write_text(SCRIPT, "utf-8")
    path = f"{TESTS}{os.pathsep}{TESTS.parent}"
    for ranks in (1, 2):
        command = [sys.executable, "train.py", str(folder), tiny_model_folder, str(ranks)]
        environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_two_ranks_have_the_losses_and_gradient_norms_of_one_process(folder: Path) -> None:
    one, two = (json.loads((folder / f"losses{ranks}.json").read_text()) for ranks in (1, 2))
    assert len(one) == len(two) >= 10
    for a, b in zip(one, two, strict=True):
        assert b == pytest.approx(a, rel=1e-3)
    assert one[-1][0] < one[0][0] - 0.5


def test_a_held_out_set_of_fewer_rows_than_ranks_has_the_same_loss(folder: Path) -> None:
    one, two = (json.loads((folder / f"held_out{ranks}.json").read_text()) for ranks in (1, 2))
    assert two == pytest.approx(one, rel=1e-3)
    assert one.keys() == {"one"}


def test_export_of_a_checkpoint_in_shards_gives_the_same_bytes(folder: Path) -> None:
    checkpoint = folder / "kept2" / "last.ckpt"
    assert len(list(checkpoint.glob("*.distcp"))) == 2
    export(str(checkpoint), str(folder / "from_shards"))
    name = "model.safetensors"
    assert (folder / "from_shards" / name).read_bytes() == (folder / "model2" / name).read_bytes()


def test_the_exported_model_is_whole(folder: Path) -> None:
    from safetensors.torch import load_file

    one, two = (load_file(folder / f"model{ranks}" / "model.safetensors") for ranks in (1, 2))
    assert {name: tensor.shape for name, tensor in one.items()} == {name: t.shape for name, t in two.items()}
    assert all((one[name].float() - two[name].float()).abs().max() < 2e-2 for name in one)
