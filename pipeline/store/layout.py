"""What lies where in a store, by name.

<store>/<kind>/<first 16 hex digits of the key>/   an artifact: manifest.json and the files it lists
<store>/<kind>/<key>/removed.json                  which of these were removed, when and why, if some were
<store>/<kind>/<key>.sig                           its signature, if it was signed
<store>/locks/<kind>-<key>.lock                    held by the process that makes it
<store>/damaged/<kind>/<key>/<number>/             what `rollbook repair` replaced
"""

from __future__ import annotations

import re

MANIFEST = "manifest.json"
"""Written last: an artifact exists exactly when its manifest does."""
REMOVED = "removed.json"
"""In a finished artifact, the note on files that were removed on purpose."""
LARGEST_MANIFEST = 256 << 20
"""Bytes; a million files have 214 million. What is larger is not read, and not written."""
LOCKS = "locks"
"""Folder of a store for its locks."""
ASIDE = "damaged"
"""Folder of a store that keeps what `rollbook repair` replaced."""
SIGNATURE = ".sig"
"""Ends the name of a signature, which lies beside its artifact."""
SCRATCH = ".resume"
"""Folder of an artifact in the making for what an interrupted stage needs to go on; removed once it is finished."""


def in_order(name: str) -> str:
    """What files sort by: their names, and numbered tables by their numbers, however many digits these have.

    >>> sorted(["part-100000.parquet", "part-99999.parquet", "origins-00000.parquet"], key=in_order)
    ['origins-00000.parquet', 'part-99999.parquet', 'part-100000.parquet']
    """
    return re.sub(r"(?<=-)[0-9]{5,}(?=\.parquet$)", lambda number: number[0].zfill(12), name)
