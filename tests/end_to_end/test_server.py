"""vLLM's server answers for the offline engine: the same rows, bit for bit; and no other checkpoint is taken."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline.common.commands import VLLM_SERVER
from pipeline.generate.engine import engine_environment
from pipeline.run.record import load_run

pytestmark = pytest.mark.slow
BASE = Path(__file__).resolve().parents[2] / "data/base"
START_SECONDS = 240.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--logprobs-mode", "processed_logprobs"]
    options += ["--enforce-eager", "--no-enable-chunked-prefill", "--kv-cache-memory-bytes", str(32 << 20), "--max-num-seqs", "8"]
    environment = {**os.environ, **engine_environment(), "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    log = tmp_path / "server.log"
    with log.open("wb") as output:
        command = [sys.executable, *VLLM_SERVER.split()[1:], "--model", str(BASE), *options]
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment, start_new_session=True)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _is_up(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text(errors="replace")[-4000:]
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _is_up(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1):
            return True
    except OSError:
        return False


def test_a_server_gives_the_rows_of_the_offline_engine(served: Any, finished: Any, server: str, tmp_path: Path) -> None:
    run = finished.without(tmp_path / "run", "generate")
    command = (*finished.again(run), "--set", f"engine.server={server}")
    after = load_run(finished.directory).iterations[1].answers
    assert after
    for artifact in (after.sampled, after.greedy):
        shutil.rmtree(run / artifact.path.relative_to(finished.directory))

    ended = served(*command)

    assert ended.status == 1
    assert f"serves '{BASE}'" in ended.err
    checkpoint = load_run(run).iterations[0].checkpoint
    assert checkpoint and f"{VLLM_SERVER} --model {checkpoint.path}" in ended.err
    before = load_run(finished.directory).iterations[0].answers
    assert before and before.rollouts and before.greedy
    for artifact in (before.rollouts, before.sampled, before.greedy):
        rows = [pl.read_parquet(part).drop("engine") for part in artifact.tables("rollouts")]
        served = [pl.read_parquet(run / part.relative_to(finished.directory)) for part in artifact.tables("rollouts")]
        assert [frame.drop("engine").equals(other) for frame, other in zip(served, rows, strict=True)] == [True] * len(rows)
        assert served[0]["engine"][0].endswith(" server float32")
