"""Whether files hold the bytes that their manifests list: hashed once each, by several threads (hashlib lets them run)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from pipeline.common.errors import StageFailed, UserError
from pipeline.look.audit.findings import Spot
from pipeline.look.audit.holdings import RESTORE, Held, safe
from schemas.manifest import File

OnBytes = Callable[[int], None]
"""Called with the number of bytes that were read so far."""


class Hashes:
    """Answers whether a file is intact. Asked twice, it looks once.

    Args:
        on_bytes: called from many threads.
        keep: whether a file's content is looked at once it is known to be intact.
    """

    def __init__(self, on_bytes: OnBytes = lambda count: None, keep: Callable[[File], bool] = lambda file: True) -> None:
        self._on_bytes, self._keep = on_bytes, keep
        self._lock = threading.Lock()
        self._answers: dict[tuple[str, str], Future[dict[str, Any] | None]] = {}
        self._stopped = False
        self.bytes = 0

    def stop(self) -> None:
        """Have threads that hash give up."""
        self._stopped = True

    def intact(self, held: Held, file: File) -> bool:
        """Whether the file is there with its bytes and hash."""
        return self._problem(held, file) is None

    def check(self, held: Held, file: File, spot: Spot) -> bool:
        """As `intact`; reports what differs."""
        problem = self._problem(held, file)
        if problem:
            spot.report(area="integrity", **{"remedy": RESTORE, **problem})
        return problem is None

    def _problem(self, held: Held, file: File) -> dict[str, Any] | None:
        key = (held.folder.place.url, file.path)
        with self._lock:
            answer = self._answers.get(key)
            asked_before = answer is not None
            if answer is None:
                answer = self._answers[key] = Future()
        if not asked_before:
            try:
                answer.set_result(self._look(held, file))
            except BaseException as error:
                answer.set_exception(error)
        return answer.result()

    def _look(self, held: Held, file: File) -> dict[str, Any] | None:
        """What differs: severity, check, expected and found. None if nothing does."""
        if not safe(file):
            return _differs("path", "a path inside the artifact", file.path)
        if file.path not in held.folder.entries and (removal := held.removal) and file.path in removal.files:
            remedy = "Nothing to do. What it was is in the manifest; what needs the weights themselves was not checked."
            said = _differs("removed", f"{file.bytes:,} bytes, or a note that they were removed", str(removal))
            return {**said, "severity": "note", "remedy": remedy}
        if file.path not in held.folder.entries:
            return _differs("missing", f"{file.bytes:,} bytes", "no such file")
        size = held.folder.entries[file.path]
        if size is None:
            return _differs("regular", "a regular file", "a link, a directory or a device")
        if size != file.bytes:
            return _differs("bytes", f"{file.bytes:,} bytes", f"{size:,} bytes")
        try:
            found = held.folder.sha256(file, self._tell, keep=self._keep(file))
        except StageFailed:
            raise  # the storage is out of reach, or the disk is full: of no file more could be said
        except (OSError, UserError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            unread = _differs("readable", "a file that can be read", reason)
            return {**unread, "severity": "unknown", "remedy": "Make it readable, and audit again."}
        return None if found == file.sha256 else _differs("sha256", file.sha256, found)

    def _tell(self, count: int) -> bool:
        with self._lock:
            self.bytes += count
            self._on_bytes(self.bytes)
        return not self._stopped


def _differs(check: str, expected: str, found: str) -> dict[str, Any]:
    return {"severity": "error", "check": check, "expected": expected, "found": found}
