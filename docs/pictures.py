"""Pictures of the pages that rollbook writes, at two widths, light and dark, and what on them is too wide or too faint.

python docs/pictures.py runs/demo --out pictures               the pages of a run: its report, comparisons and audits
python docs/pictures.py site/index.html report.html --out pictures

Prints a line for each picture; ends with status 1 if anything reaches over the side of a page or is hard to read. Needs Chromium.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from browser import Browser

WIDTHS = (1400, 400)


def pages(places: list[Path]) -> Iterator[Path]:
    """The files named, and the pages that lie in the directories named."""
    for place in places:
        found = sorted(place.glob("*.html")) if place.is_dir() else [place]
        if not found:
            raise SystemExit(f"{place}: no pages there; `rollbook report {place}` writes one")
        yield from found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="+", type=Path, help="HTML files, or directories of them")
    parser.add_argument("--out", type=Path, default=Path("pictures"), help="where pictures are written")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    wrong = 0
    with Browser() as browser:
        for page in pages(given.pages):
            for width in WIDTHS:
                for dark in (False, True):
                    browser.open(page.resolve().as_uri(), width, dark=dark)
                    picture = given.out / f"{page.resolve().parent.name}-{page.stem}-{width}-{'dark' if dark else 'light'}.png"
                    browser.picture(picture)
                    over, scrolled = browser.too_wide()
                    faint = browser.faint()
                    print(picture)
                    for line in (
                        *(f"  too wide: {one}" for one in over),
                        *(f"  scrolls: {one}" for one in scrolled),
                        *(f"  faint: {one}" for one in faint),
                    ):
                        print(line)
                    wrong += len(over) + len(faint)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
