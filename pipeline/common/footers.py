"""Whether the footer of a Parquet file can be asked about its columns: tried in a process of its own.

pyarrow checks what a footer says of a column only when it is asked, and ends the process where that makes no sense. One process
tries many files; where it ends, the file that it was given is the damaged one.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

_ALIVE: list[subprocess.Popen[str]] = []
_TURN = threading.Lock()


def refuse_damaged(path: Path | str) -> None:
    """Look at every column of every row group.

    Safe to call from many threads; each waits for its turn. The process ends with this one, since its input then does.

    Raises:
        OSError: the footer says what cannot be; what pyarrow said of it.
    """
    with _TURN:
        process = _ALIVE.pop() if _ALIVE else _started()
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        try:
            process.stdin.write(str(path).encode("unicode_escape").decode() + "\n")
            process.stdin.flush()
            answered = process.stdout.readline()
        except BrokenPipeError:
            answered = ""
        if answered:
            _ALIVE.append(process)
            return
        said = process.communicate()[1]
    reasons = [line.partition("what():")[2].strip() for line in said.splitlines() if "what():" in line]
    raise OSError(f"the footer is damaged: {reasons[0] if reasons else f'reading it ended with {process.returncode}'}")


def _started() -> subprocess.Popen[str]:
    command = [sys.executable, "-P", "-m", "pipeline.common.footers"]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def _look(path: str) -> None:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for number in range(file.metadata.num_row_groups):
            group = file.metadata.row_group(number)
            for place in range(group.num_columns):
                column = group.column(place)
                _ = column.num_values, column.statistics if column.is_stats_set else None


def main() -> None:
    """Look at each file that a line names; what pyarrow raises is for who asked to meet."""
    for line in sys.stdin:
        try:
            _look(line.removesuffix("\n").encode().decode("unicode_escape"))
        except Exception:
            print("raised", flush=True)
        else:
            print("sound", flush=True)


if __name__ == "__main__":
    main()
