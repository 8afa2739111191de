"""What mkdocs needs beside the pages: the first page from README.md, and files that pages name outside of docs/.

Pages are written to be read in the repository, where `../configs/demo.yaml` is a file. In the site such files are copied to
`files/`, and the links lead there.

The search of a site that is opened from disk takes a stand-in for a browser's workers, which the theme would ask the network for.
It lies in `theme/`: iframe-worker 1.0.4 by Martin Donath, as npm has it (`shim/index.js`), with its license (MIT) beside it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
SHIM = "https://unpkg.com/iframe-worker/shim"
LINK = re.compile(r"(?<=\]\()(\.\./[^)#\s]+)")


def on_files(files: Any, config: Any) -> Any:
    """Add the first page and the files outside."""
    files.append(File.generated(config, "index.md", content=_first_page()))
    pages = [file.content_string for file in files.documentation_pages()]
    for target in sorted({link for page in pages for link in LINK.findall(page)}):
        source = (ROOT / "docs" / target).resolve()
        if source.is_file() and source.is_relative_to(ROOT):
            files.append(File.generated(config, _place(target), content=source.read_bytes()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Lead links to files outside to their copies."""
    return LINK.sub(lambda link: _place(link[1]), markdown)


def on_post_page(output: str, **_: Any) -> str:
    """Have the search ask nothing of the network."""
    return output.replace(SHIM, "theme/iframe-worker.js")


def _place(target: str) -> str:
    name = target.removeprefix("../")
    return f"files/{name}.txt" if name.endswith((".md", ".yaml", ".py")) else f"files/{name}"


def _first_page() -> str:
    """README.md with its links as seen from docs/."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")

    def seen_from_docs(link: re.Match[str]) -> str:
        target = link[1]
        return target if "://" in target or target.startswith("#") else re.sub(r"^\.\./docs/", "", f"../{target}")

    return re.sub(r"(?<=\]\()([^)\s]+)", seen_from_docs, text)
