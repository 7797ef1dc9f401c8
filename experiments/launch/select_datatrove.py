"""Filter shards of text with datatrove, on this machine or as a SLURM array.

    pip install "datatrove[io]" ".[select]"
    python experiments/launch/select_datatrove.py 'data/*.jsonl' configs/select/shard.yaml outputs/shards 4
    python experiments/launch/select_datatrove.py 'data/*.jsonl' configs/select/shard.yaml outputs/shards 400 PARTITION

Every task runs `select` on its files with the filters that judge each record by itself; finished files are skipped.
Filters that need the whole data set run afterwards on one machine: score what is left, and select from the scores (near
duplicates take a few dozen bytes of memory per record).

    torchrun --nproc-per-node 8 -m inscp score --model MODEL --data outputs/shards --out outputs/scores
    python -m inscp select --config WHOLE.yaml --data outputs/shards --scores outputs/scores --out outputs/selected

datatrove rather than Ray or Spark: the files are independent of each other, so no cluster is needed besides SLURM, and
FineWeb was filtered with it.
"""

import subprocess
import sys
from glob import glob
from pathlib import Path
from typing import Any

from datatrove.executor import LocalPipelineExecutor, SlurmPipelineExecutor
from datatrove.pipeline.base import PipelineStep


class Select(PipelineStep):
    """`python -m inscp select` on every `world_size`-th file, starting at file `rank`.

    Args:
        files: input files of all tasks.
        config: configuration of `select`; this step sets its `data` and `out`.
        out: output folder; gets one folder per file.
    """

    name = "inscp select"
    type = "filter"

    def __init__(self, files: list[str], config: str, out: str) -> None:
        super().__init__()
        self.files, self.config, self.out = files, config, Path(out)

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Any:
        for file in self.files[rank::world_size]:
            folder = self.out / file.strip("/").replace("/", "__")
            if not folder.exists():  # `select` writes it completely or not at all
                command = [sys.executable, "-m", "inscp", "select", "--config", self.config, "--data", file]
                done = subprocess.run([*command, "--out", str(folder)], stderr=subprocess.PIPE, text=True)
                if "leaves no record" in done.stderr:
                    self.stat_update("files of which nothing is left")
                elif done.returncode:
                    raise RuntimeError(done.stderr)
            self.stat_update("files")
        yield from data or ()


def main(pattern: str, config: str, out: str, tasks: str, partition: str | None = None) -> None:
    """Run the tasks here, two at a time, or submit them to a SLURM partition."""
    files = sorted(glob(pattern))  # noqa: PTH207  # Path.glob takes no absolute pattern
    if not files:
        sys.exit(f"error: {pattern}: no such file. Give a pattern in quotes.")
    pipeline, logs = [Select(files, config, out)], f"{out}.logs"
    if partition is None:
        LocalPipelineExecutor(pipeline, tasks=int(tasks), workers=2, logging_dir=logs).run()
    else:
        SlurmPipelineExecutor(pipeline, tasks=int(tasks), time="12:00:00", partition=partition, mem_per_cpu_gb=8,
                              logging_dir=logs, venv_path=sys.prefix).run()  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
