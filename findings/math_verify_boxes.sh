#!/usr/bin/env bash
# math-verify 0.9.0: two boxes with fewer than ten characters between them are one set, so the last answer is not the answer.
# Expected: a completion that corrects itself, \boxed{6}, wait, \boxed{5}, answers 5 (with a longer text between them it does).
# Seen: it is {5, 6}, which is not 5. Exits 0 while that is so.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place"
"$place/bin/pip" install --quiet --disable-pip-version-check \
    math-verify==0.9.0 latex2sympy2_extended==1.11.0 sympy==1.14.0 antlr4-python3-runtime==4.13.2
"$place/bin/python" - <<'PYTHON'
import sys

from math_verify import parse, verify

near = verify(parse("$5$"), parse(r"\boxed{6}, wait, \boxed{5}"))
far = verify(parse("$5$"), parse(r"\boxed{6} no wait that is wrong \boxed{5}"))
print(f"the last box, with 7 characters between: {near}, with 24: {far}")
sys.exit((near, far) != (False, True))
PYTHON
