"""Whether other work ran on the machine while something was made: then its wall time cannot be compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pipeline.store import Artifact

MUCH = 0.3
"""Cores, on average, beyond which other work slows a stage; what watches a run takes less."""


def busiest(artifacts: Iterable[Artifact]) -> float | None:
    """The most cores that other work took beside one of them, as their notes say; None where none says so."""
    known = [artifact.manifest.provenance.notes.get("other_work") for artifact in artifacts]
    return max((float(cores) for cores in known if isinstance(cores, int | float)), default=None)


def not_comparable(cores: Mapping[str, float | None]) -> str | None:
    """What to say of wall times, by what they are of; None where all can be compared.

    >>> not_comparable({"a": 1.25, "b": 0.1, "c": 0.6})
    'Times of a and c cannot be compared: other work took up to 1.2 cores of the machine meanwhile.'
    >>> not_comparable({"a": None, "b": 0.0})
    'Whether other work ran beside a is not known: compare its times with care.'
    >>> not_comparable({"a": 0.02, "b": 0.0}) is None
    True
    """
    disturbed = [name for name, value in cores.items() if value is not None and value > MUCH]
    if disturbed:
        most = max(value for value in cores.values() if value is not None)
        return (
            f"Times of {_listed(disturbed)} cannot be compared: other work took up to {most:.1f} cores of the machine meanwhile."
        )
    unknown = [name for name, value in cores.items() if value is None]
    if unknown:
        its = "its" if len(unknown) == 1 else "their"
        return f"Whether other work ran beside {_listed(unknown)} is not known: compare {its} times with care."
    return None


def _listed(names: list[str]) -> str:
    """
    >>> _listed(["a"]), _listed(["a", "b", "c"]), _listed(list("abcdef"))
    ('a', 'a, b and c', 'a, b and 4 others')
    """
    if len(names) > 4:
        return f"{names[0]}, {names[1]} and {len(names) - 2} others"
    return " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)
