"""Errors that are answers. The command line prints their message without a traceback and exits with `exit_code`."""

from __future__ import annotations

import errno
import os
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


class RunStopped(UserError):
    """A rule of `stop` found that a run went wrong, and ended it; the same command ends the same way."""

    exit_code = 3


class StageCrashed(StageFailed):
    """A stage's process was ended by a signal. That may pass, so it is worth another try."""


REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE)
"""What an operating system refuses for reasons that lie outside the program."""


def as_answer(error: Exception) -> StageFailed | None:
    """What to say of an error that the machine is to blame for: a full disk, a place without permission. None for any other.

    Libraries that write files by themselves wrap what the system said in errors of their own, without its number.
    """
    text = " ".join(str(error).split())
    place = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
    if isinstance(error, OSError) and error.errno in REFUSALS:
        why = os.strerror(error.errno)
    elif any(os.strerror(number) in text for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)):
        why = text[:300]
    elif isinstance(error, OSError) and "requested and" in text and text.endswith("written"):  # NumPy
        why = os.strerror(errno.ENOSPC)
    else:
        return None
    return StageFailed(f"{place}{why}. What is finished is kept; mend that and run the same command again.")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the operating system refuses into an answer that names the place.

    Raises:
        StageFailed: the disk is full or the place cannot be written to.
    """
    try:
        yield
    except OSError as error:
        why = error.strerror or (as_answer(error) and os.strerror(errno.ENOSPC))
        if not why:
            raise
        raise StageFailed(f"{path}: cannot be written: {why}. Mend that and run the same command again.") from error
