"""Output whose reader goes away, reads slowly, or cannot take it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

ROLLBOOK = Path(sys.executable).with_name("rollbook")
PROGRAM = """
import sys
from flows.commands.streams import outlive_readers
outlive_readers()
for number in range(20_000):
    print(number)
sys.stdout.flush()
print("done", file=sys.stderr)
"""


def start(stdout: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=stdout, stderr=subprocess.PIPE)


def test_a_closed_pipe_ends_nothing() -> None:
    reading, writing = os.pipe()
    process = start(writing)
    os.close(writing)
    assert os.read(reading, 10).startswith(b"0\n1\n")
    os.close(reading)
    _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (0, b"done\n")


def test_a_full_pipe_is_waited_for() -> None:
    """It does not block, so that writing to it fails while it is full; the reader comes a second later."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    process = start(writing)
    os.close(writing)
    time.sleep(1)
    with open(reading, "rb") as file:
        lines = file.read().split()
    _, error = process.communicate(timeout=60)
    assert lines == [str(number).encode() for number in range(20_000)]
    assert (process.returncode, error) == (0, b"done\n")


def test_output_that_cannot_be_written_is_an_error() -> None:
    with open("/dev/full", "wb") as full:
        ended = subprocess.run([ROLLBOOK, "algorithms", "--json"], stdout=full, stderr=subprocess.PIPE, timeout=60)
    assert ended.returncode == 1
    assert b"No space left on device" in ended.stderr
    assert b"Traceback" not in ended.stderr


def test_a_locale_that_lacks_a_character_ends_nothing() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    code = "from flows.commands.streams import outlive_readers; outlive_readers(); print('done \\u2713')"
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (0, b"done \\u2713\n")
