from __future__ import annotations

import subprocess
import sys

TRIED = """
import sys
import schemas
assert not [name for name in sys.modules if name.partition(".")[0] == "sqlalchemy"]
import sqlalchemy
assert sqlalchemy.select
"""


def test_tables_are_defined_without_sqlalchemy_which_can_still_be_imported() -> None:
    done = subprocess.run([sys.executable, "-c", TRIED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
