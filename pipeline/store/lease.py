"""One writer at a time, in a bucket: an object that names its holder, renewed by a heartbeat, taken over when that stops.

Whether a holder lives is judged by watching, not by clocks: who waits takes over once the object has not changed for as
long as the holder promised to renew it. So clocks that differ or jump do no harm. Processes of one machine hold a lock
of its kernel first, so that a process that died here is known to be dead at once.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from pipeline.common.errors import StageFailed, UserError
from pipeline.store.bucket import ABSENT, Bucket, Changed
from pipeline.store.lock import Lock

LEASE_SECONDS = "ROLLBOOK_LEASE_SECONDS"
"""Variable: how long a writer may be silent before another takes its place. Default: 60."""
BEATS = 4
"""Heartbeats per lease."""
POLL_SECONDS = 2.0
UNKNOWN_SECONDS = 60.0
"""How long a lock that is no record of ours has to be unchanged before it is taken over."""


class LeaseLost(StageFailed):
    """Another process took this one for dead and makes its artifact."""


class Lease:
    """An exclusive lock on a key of a bucket, held as long as the block runs and its process lives.

    Raises:
        UserError: the storage does not honor conditional writes, or the variable is no number of seconds.
        StageFailed: the storage is out of reach.
    """

    def __init__(self, bucket: Bucket, key: str, machine: str, local: Path, notify: Callable[[str], None]) -> None:
        """
        Args:
            machine: what every process that can hold `local` has in common, and no other.
            local: file of the kernel's lock.
        """
        self._bucket, self._key, self._machine, self._notify = bucket, key, machine, notify
        self._local = Lock(local, notify=notify)
        self._name = local.stem
        self._seconds = _seconds()
        self._token = uuid.uuid4().hex
        self._beat = 0
        self._etag = ABSENT
        self._lost = False
        self._guard = threading.Lock()
        self._over = threading.Event()

    def __enter__(self) -> Lease:
        self._local.__enter__()
        try:
            self._take()
        except BaseException:
            self._local.__exit__(None, None, None)
            raise
        threading.Thread(target=self._renew_until_over, name=f"lease {self._name}", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        try:
            with self._guard:
                if not self._lost:
                    self._bucket.write(self._key, self._record(held=False), self._etag)
        except (Changed, UserError):
            pass  # whoever needs it takes it over
        finally:
            self._local.__exit__(kind, error, trace)

    def confirm(self) -> None:
        """Make sure, by renewing it, that the lease is still held.

        Raises:
            LeaseLost: another process has taken over.
        """
        self._renew()
        if self._lost:
            raise LeaseLost(
                f"s3://{self._bucket.name}/{self._key}: {self._holder()} has taken over, since this process was not heard of for "
                f"{self._seconds:.0f} s. Run the same command again to share what it makes."
            )

    def _take(self) -> None:
        watched, since, told = "", 0.0, False
        while True:
            found = self._bucket.read(self._key)
            if found is None:
                if self._write_first():
                    return
                continue
            held = _parsed(found[0])
            if found[1] != watched:
                watched, since = found[1], time.monotonic()
            silent = time.monotonic() - since >= held["seconds"]
            if held["token"] is None or held["machine"] == self._machine or silent:
                if self._write(found[1]):
                    if silent and told:
                        self._notify(
                            f"{self._name}: took over from {held['holder']}, which was silent for {held['seconds']:.0f} s"
                        )
                    return
                continue
            if not told:
                self._notify(
                    f"waiting for {self._name}, held by {held['holder']} (if that has died, for {held['seconds']:.0f} s at most)"
                )
                told = True
            time.sleep(min(POLL_SECONDS, held["seconds"] / BEATS))

    def _write_first(self) -> bool:
        """Make the object; then see that the storage refuses to make it twice."""
        if not self._write(ABSENT):
            return False
        try:
            self._bucket.write(self._key, self._record(held=True), ABSENT)
        except Changed:
            return True
        raise UserError(
            f"s3://{self._bucket.name}: this storage does not honor conditional writes (If-None-Match), without which two runs "
            "could write over each other. Use a newer version of it, or a store in a local directory"
        )

    def _write(self, only_if: str) -> bool:
        """Write our record if nobody else wrote since. An answer that was lost is made up for by looking."""
        self._beat += 1
        try:
            self._etag = self._bucket.write(self._key, self._record(held=True), only_if)
        except Changed:
            found = self._bucket.read(self._key)
            if found is None or _parsed(found[0])["token"] != self._token:
                return False
            self._etag = found[1]
        return True

    def _renew(self) -> None:
        with self._guard:
            if not self._lost and not self._over.is_set() and not self._write(self._etag):
                self._lost = True

    def _renew_until_over(self) -> None:
        while not self._over.wait(self._seconds / BEATS) and not self._lost:
            try:
                self._renew()
            except UserError:
                continue  # out of reach: the lease is ours until somebody takes it

    def _record(self, *, held: bool) -> bytes:
        record = {
            "holder": f"process {os.getpid()} on {socket.gethostname()}",
            "machine": self._machine,
            "token": self._token if held else None,
            "beat": self._beat,
            "seconds": self._seconds,
        }
        return json.dumps(record).encode()

    def _holder(self) -> str:
        found = self._bucket.read(self._key)
        return str(_parsed(found[0])["holder"]) if found else "another process"


def holder_of(bucket: Bucket, key: str) -> str | None:
    """Who holds a lock now; None if nobody does, or its holder was silent for longer than it promised."""
    found, silent = bucket.read(key), bucket.seconds_since(key)
    if found is None or silent is None:
        return None
    held = _parsed(found[0])
    return None if held["token"] is None or silent > held["seconds"] else str(held["holder"])


def _seconds() -> float:
    text = os.environ.get(LEASE_SECONDS, "60")
    with suppress(ValueError):
        if 0 < (seconds := float(text)) <= threading.TIMEOUT_MAX:
            return seconds
    raise UserError(f"{LEASE_SECONDS}={text}: expected a number of seconds above 0")


def _parsed(body: bytes) -> dict[str, Any]:
    """A lock's record. One that cannot be read counts as held by somebody unknown."""
    unknown = {"holder": "another process", "machine": "", "token": "", "seconds": UNKNOWN_SECONDS}
    try:
        record = json.loads(body)
        return {**unknown, **record, "seconds": float(record["seconds"])}
    except (ValueError, TypeError, KeyError):
        return unknown
