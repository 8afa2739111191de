"""Hashes of large files, remembered on this machine, so that what has not changed on disk is not read again to be hashed.

<cache>/hashes/<device>-<inode>    size, modification and status-change times in ns, sha256

A file is taken for unchanged if all of these are what they were. The status-change time is the kernel's: a program that writes
into a file and sets its modification time back is noticed. What no program did (a disk that rots) is not; audits, repairs and
signatures read every byte.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from contextlib import suppress
from pathlib import Path

from pipeline.store.cache import cache_directory
from pipeline.store.files import TEMPORARY, sha256_of

LEAST = 1 << 20
"""Bytes of a file that is worth remembering."""
TICK_NS = 20_000_000
"""ns. Times of files may be as coarse as this. What was written just now could be written again without showing it."""


FICLONE = 0x40049409
"""Linux's request to an open file: take the blocks of another."""


def known_sha256(path: Path) -> str:
    """The sha256 of a file: remembered, or else computed and remembered."""
    before = path.stat()
    if before.st_size < LEAST:
        return sha256_of(path)
    if (known := _recalled(before)) is not None:
        return known
    settled = max(before.st_mtime_ns, before.st_ctime_ns) + TICK_NS
    if 0 < (wait := settled - time.time_ns()) <= TICK_NS:
        time.sleep(wait / 1e9)
    started = time.time_ns()
    found = sha256_of(path)
    after = path.stat()
    if started >= settled and _state(before) == _state(after):
        _remember(after, found)
    return found


def hard_link(source: Path, target: Path) -> bool:
    """Give a file a second name; what is known of it stays known. Whether that could be done.

    Args:
        target: where nothing is yet.
    """
    before = source.stat()
    known = _recalled(before) if before.st_size >= LEAST else None
    try:
        os.link(source, target)
    except OSError:  # another file system, one without links, or another user's file
        return False
    after = target.stat()
    same = (before.st_ino, before.st_size, before.st_mtime_ns) == (after.st_ino, after.st_size, after.st_mtime_ns)
    if known is not None and same:
        _remember(after, known)
    return True


def clone(source: Path, target: Path) -> bool:
    """Copy a file so that both share their blocks until one is written to (a reflink). Whether the file system can do that.

    Args:
        target: where nothing is yet; nothing is left there otherwise.
    """
    try:
        with source.open("rb") as old, target.open("xb") as new:
            fcntl.ioctl(new.fileno(), FICLONE, old.fileno())
    except OSError:
        target.unlink(missing_ok=True)
        return False
    return True


def _state(found: os.stat_result) -> list[int]:
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _place(found: os.stat_result) -> Path:
    return cache_directory() / "hashes" / f"{found.st_dev}-{found.st_ino}"


def _recalled(found: os.stat_result) -> str | None:
    try:
        state, sha256 = json.loads(_place(found).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return None
    return str(sha256) if state == _state(found) else None


def _remember(found: os.stat_result, sha256: str) -> None:
    place = _place(found)
    temporary = place.with_name(f"{TEMPORARY}{os.getpid()}-{place.name}")
    with suppress(OSError):  # without a cache, files are hashed again
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps([_state(found), sha256]), encoding="utf-8")
        temporary.replace(place)
