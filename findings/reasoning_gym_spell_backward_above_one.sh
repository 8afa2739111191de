#!/usr/bin/env bash
# reasoning-gym 0.1.25, spell_backward: a right answer with anything behind it scores above 1.
# Expected: at most 1, and less than 1 for an answer that is not the reference (the scorer takes 0.2 off for that).
# Seen: for a reference of 6 letters the shares 1/6 add up to 0.9999999999999999, which is kept; for 49 letters to
#       1.0000000000000007. Neither is == 1.0, so nothing is taken off.
# Ends with 0 while it is so.
set -euo pipefail
python3 -m venv "$(mktemp -d)/venv" && cd "$(dirname "$_")"
venv/bin/pip install --quiet --disable-pip-version-check reasoning-gym==0.1.25
venv/bin/python - <<'PYTHON'
import sys

import reasoning_gym

score = reasoning_gym.create_dataset("spell_backward", seed=7, size=1).score_answer
found = {size: score("a" * size + "x", {"answer": "a" * size}) for size in range(2, 60)}
above = {size: value for size, value in found.items() if value > 1}
print("version 0.1.25, scores above 1 for a wrong answer, by the reference's length:", above)
sys.exit(0 if above else 1)
PYTHON
