"""How much is scored at once depends on the memory that attention takes."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, Phi3Config, PretrainedConfig

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
    loss = scored(by_document, LlamaConfig())
    assert scoring_batch_tokens(loss) == tokens
    assert scoring_batch_tokens(loss, 100) == 100


def test_a_text_that_would_change_the_others_is_scored_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "isolates_documents", lambda *_: True)
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0], "long_factor": [4.0]}
    config = Phi3Config(hidden_size=4, num_attention_heads=2, num_key_value_heads=2, pad_token_id=0,
                        original_max_position_embeddings=64, rope_parameters=rope)  # fmt: skip
    assert [scoring_batch_tokens(scored(True, config), given) for given in (None, 100, 10)] == [64, 64, 10]


def scored(by_document: bool, config: PretrainedConfig) -> Any:
    return SimpleNamespace(by_document=by_document, model=SimpleNamespace(config=config))
