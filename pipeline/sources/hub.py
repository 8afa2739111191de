"""The Hugging Face hub, which may not be there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

SECONDS = 5.0
"""How long the hub may take to answer."""


@contextmanager
def hub_answers(*, unless: bool = False) -> Iterator[None]:
    """Within the block, libraries use what is cached if the hub does not answer: left to themselves they try for 25 s.

    Args:
        unless: the hub is not needed.
    """
    import datasets
    from huggingface_hub import constants, get_session

    if unless or constants.HF_HUB_OFFLINE:
        yield
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS)
    except Exception as error:
        reason = f"the hub does not answer ({(str(error) or type(error).__name__).splitlines()[0]})"
    else:
        yield
        return
    before = datasets.config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    except Exception as error:
        raise ConnectionError(f"{reason}; {error}") from error
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = False, before
