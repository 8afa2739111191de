"""Starting the other ranks of this machine: stage processes like this one, which end when this one does.

torchrun may start all ranks instead; then nothing is started here.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from pipeline.common.errors import UserError
from pipeline.run.process import Event, StageProcess
from pipeline.train.team import Team, is_rank, join

ADDRESS = "127.0.0.1"
SECONDS = 5.0
"""How long an error here waits for the error of a rank that may have caused it."""


@contextmanager
def team_of(count: int, module: str, spec: Event, logs: Path) -> Iterator[Team]:
    """The team that torchrun started; or one of `count` processes, of which this starts the others.

    Args:
        module: the stage's module.
        spec: what the stage was given.
        logs: directory of the others' logs.

    Raises:
        StageFailed: another rank ended before its work was done; says how, and where its log is.
        UserError: what another rank raised.
    """
    peers = Peers(count, module, spec, logs) if count > 1 and not is_rank() else None
    try:
        team = join()
        yield team
        team.leave()
        if peers:
            peers.wait()
    except Exception as error:
        if peers and not isinstance(error, UserError) and (failed := peers.failure(SECONDS)):
            raise failed from error
        raise
    finally:
        if peers:
            peers.end()


class Peers:
    """Ranks 1, 2, … of this machine. While they are there, this process's environment says that it is rank 0."""

    def __init__(self, count: int, module: str, spec: Event, logs: Path) -> None:
        """Start them and give them their work.

        Args:
            count: ranks in all, this one included.
        """
        self._store = TCPStore(ADDRESS, 0, is_master=True, wait_for_workers=False)
        shared = {
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "MASTER_ADDR": ADDRESS,
            "MASTER_PORT": str(self._store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",  # rank 0 is to use the store that is there, not to make another
            "TORCHELASTIC_RESTART_COUNT": "0",
        }
        self._threads_before = torch.get_num_threads()
        if "OMP_NUM_THREADS" not in os.environ:
            shared["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // count))
            torch.set_num_threads(int(shared["OMP_NUM_THREADS"]))
        self._ended, self._failed = threading.Event(), threading.Event()
        self._failure: UserError | None = None
        self._processes, self._followers = [], []
        for rank in range(1, count):
            log = logs / f"rank-{rank}.log"
            process = StageProcess(module, log, {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})
            self._processes.append(process)
            self._followers.append(threading.Thread(target=self._follow, args=(process, spec, log), daemon=True))
        self._set = {**shared, "RANK": "0", "LOCAL_RANK": "0"}
        os.environ.update(self._set)
        for follower in self._followers:
            follower.start()

    def _follow(self, process: StageProcess, spec: Event, log: Path) -> None:
        try:
            process.run({"jobs": [spec]}, log)
        except UserError as error:
            self._failure = self._failure or error
            self._failed.set()
            if not self._ended.wait(10 * SECONDS):
                print(f"{error}\nThis process waits for that rank, in an exchange that cannot be interrupted.", file=sys.stderr)
                os._exit(error.exit_code)

    def failure(self, seconds: float) -> UserError | None:
        """The error of the first that failed; one that is just failing is waited for."""
        self._failed.wait(seconds)
        return self._failure

    def wait(self) -> None:
        """Until all have done their work.

        Raises:
            UserError: one has failed.
        """
        for follower in self._followers:
            follower.join(None if self._failure is None else 0)
        if self._failure:
            raise self._failure

    def end(self) -> None:
        """Make sure that they are gone."""
        self._ended.set()
        for process in self._processes:
            process.end()
        for name in self._set:
            os.environ.pop(name, None)
        torch.set_num_threads(self._threads_before)
