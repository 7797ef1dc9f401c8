"""Digests of file contents; large files are read again only if they have changed."""

import hashlib
import time
from contextlib import suppress
from pathlib import Path

from inscp.paths import cache_folder

_TICK = 2_000_000_000
"""Nanoseconds; no file system's clock is coarser."""


def file_digest(path: Path) -> str:
    """BLAKE2b of a file's contents, in hex.

    Cached under everything that identifies a file's state; of that, the time of the last status change cannot be set
    back. A file changed a moment ago is not cached, because a further change within one tick of the file system's clock
    would go unnoticed (git's index does the same).
    """
    state = path.stat()
    times = state.st_mtime_ns, state.st_ctime_ns
    identity = repr((str(path.absolute()), state.st_dev, state.st_ino, state.st_size, *times))
    # The digest is kept as the target of a dangling symbolic link, which is created atomically.
    kept = None
    with suppress(OSError):  # not cached, or no cache to write to
        kept = cache_folder("digests") / hashlib.blake2b(identity.encode(), digest_size=16).hexdigest()
        return str(kept.readlink())
    begin = time.time_ns()
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "blake2b").hexdigest()
    if kept and begin - max(times) > _TICK:
        with suppress(OSError):  # a file system without links
            kept.symlink_to(digest)
    return digest
