#!/usr/bin/env bash
# math-verify 0.9.0: any equation between numbers equals any other, true or false.
# Expected: 7 = 8 is not the answer (8 - 4) * 6 = 24. Seen: verify is True, also for 1 = 2. An equation with a variable differs.
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

gold = parse(r"$(8-4)\cdot 6=24$")
seen = [verify(gold, parse(text)) for text in ("$7=8$", "$1=2$", "$x=24$")]
print(f"7=8, 1=2 and x=24 for (8-4)*6=24: {seen}")
sys.exit(seen[:2] != [True, True])
PYTHON
