"""Fixtures that keep the tests hermetic: no network, no user's cache, and tokenizers and models made on the spot."""

import os
import sys

# Before anything imports a Hugging Face library, which reads these once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"  # tiny models gain nothing from more, and lose much where cores are shared
os.environ["TORCHINDUCTOR_VEC_ISA_OK"] = "0"  # nor from vectors, for which torch.compile would try the C++ compiler out

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from chat_templates import STYLES, tokenizer_for
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

LONG = ("distributed", "integration", "tracking")
"""The folders of tests that start processes and wait for them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests first: were one of their files the last, a single worker would have it while the others are done."""
    items.sort(key=lambda item: item.path.parent.name not in LONG)


@pytest.fixture(scope="session", autouse=True)
def cache_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The package's cache, in a folder of this session; subprocesses inherit it."""
    root = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INSCP_CACHE", str(root))
        yield root


@pytest.fixture(autouse=True)
def command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test's commands take for the command line, others' do not."""
    monkeypatch.setattr(sys, "argv", sys.argv)


@pytest.fixture
def chatml_tokenizer() -> PreTrainedTokenizerBase:
    """Byte-level BPE with <|endoftext|>, <|im_start|>, <|im_end|> and a ChatML template; no BOS."""
    return tokenizer_for(STYLES["chatml"])


@pytest.fixture
def sentencepiece_tokenizer() -> PreTrainedTokenizerBase:
    """SentencePiece-style BPE (▁ for spaces, byte fallback) with <s>, </s> and a Mistral template; adds BOS."""
    return tokenizer_for(STYLES["mistral"])


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random two-layer Llama with the ChatML tokenizer, as a Hugging Face folder. Not to be written to."""
    folder = str(tmp_path_factory.mktemp("model") / "tiny-llama")
    tokenizer = tokenizer_for(STYLES["chatml"])
    pad, eos = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    tokenizer.pad_token = "<|endoftext|>"
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=eos,
        pad_token_id=pad,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=eos, pad_token_id=pad)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some texts; beside them, in english.jsonl, conversations to be replayed. Their folder is not to be written to."""
    from corpus import write_conversations, write_corpus  # with all that trains, which few tests need

    folder = tmp_path_factory.mktemp("corpus")
    write_conversations(folder)
    return write_corpus(folder)
