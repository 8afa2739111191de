"""Errors that are answers. The command line prints their message without a traceback and exits with `exit_code`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(Exception):
    """Something the user can mend: the message names what was found, what was expected and the remedy."""

    exit_code = 2


class DataError(UserError):
    """A table or file that does not hold what its schema says."""


class IntegrityError(UserError):
    """An artifact whose files or identity differ from its manifest."""


class StageFailed(UserError):
    """A stage stopped on purpose or crashed; what it had finished is kept and the same command goes on from there."""

    exit_code = 1


class StageCrashed(StageFailed):
    """A stage's process was ended by a signal. That may pass, so it is worth another try."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the operating system refuses into an answer that names the place.

    Raises:
        StageFailed: the disk is full or the place cannot be written to.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        raise StageFailed(f"{path}: cannot be written: {error.strerror}. Mend that and run the same command again.") from error
