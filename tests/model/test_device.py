"""How much is scored at once depends on the memory that attention takes."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from inscp.model import device
from inscp.model.device import scoring_batch_tokens


@pytest.mark.parametrize(
    ("kind", "by_document", "tokens"), [("cuda", True, 32768), ("cuda", False, 4096), ("cpu", True, 4096)]
)
def test_a_long_row_is_for_gpus_that_attend_by_document(
    kind: str, by_document: bool, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "best_device", lambda: torch.device(kind))
    monkeypatch.setattr(device, "isolates_documents", lambda *_: True)
    loss: Any = SimpleNamespace(by_document=by_document)
    assert scoring_batch_tokens(loss) == tokens
    assert scoring_batch_tokens(loss, 100) == 100
