"""Which checkpoint a training goes on from."""

import sys
from collections.abc import Sequence
from pathlib import Path

from inscp.errors import UserError
from inscp.model.checkpoint import whole_checkpoints


def newest_checkpoint(folders: Sequence[Path]) -> Path | None:
    """The newest whole checkpoint of the first folder that has one (`--ckpt_path last`), told on standard error.

    Args:
        folders: where checkpoints may lie, the newest first.

    Raises:
        UserError: there are checkpoints, and all of them are damaged.
    """
    for folder in folders:
        whole, damaged = whole_checkpoints(folder)
        for error in damaged:
            print(f"warning: {error.where}: {error.what}; passed over", file=sys.stderr)
        if whole:
            print(f"going on from {whole[0]}", file=sys.stderr)
            return whole[0]
        if damaged:
            raise UserError(str(folder), "every checkpoint is damaged", "Move them away to start from the beginning.")
    print("no checkpoint yet: starting from the beginning", file=sys.stderr)
    return None
