#!/usr/bin/env bash
# math-verify 0.9.0: numbers side by side are added, in brackets and with a thin space too.
# Expected: 2(3) is 6, and 12\,345 is 12345. Seen: 2(3) is 5, and 12\,345 is 357 (a mixed number is meant to be a sum).
# Exits 0 while that is so.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place"
"$place/bin/pip" install --quiet --disable-pip-version-check \
    math-verify==0.9.0 latex2sympy2_extended==1.11.0 sympy==1.14.0 antlr4-python3-runtime==4.13.2
"$place/bin/python" - <<'PYTHON'
import sys

from math_verify import parse, verify

product, thousands = verify(parse("$5$"), parse("$2(3)$")), verify(parse("$357$"), parse(r"$12\,345$"))
right = verify(parse("$6$"), parse("$2(3)$")), verify(parse("$12345$"), parse(r"$12\,345$"))
print(f"2(3) for 5: {product}, for 6: {right[0]}; 12\\,345 for 357: {thousands}, for 12345: {right[1]}")
sys.exit((product, thousands, *right) != (True, True, False, False))
PYTHON
