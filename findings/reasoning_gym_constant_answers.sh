#!/usr/bin/env bash
# reasoning-gym 0.1.25: one answer for all questions earns 1.0 in coin_flip ("0"), complex_arithmetic ("nan"),
# game_of_life_halting (any text) and puzzle24 ("6*4*1*1").
# Expected: 1.0 for right answers only, so a constant earns its share of the questions.
# Seen: 1.0 on every item. coin_flip divides the common prefix by the shorter text, and every probability begins with 0;
#       complex_arithmetic takes min(1.0, exp(-nan)), which is 1.0; game_of_life_halting compares bool(text) of two texts;
#       puzzle24 does not look at which numbers the question names.
# Ends with 0 while it is so.
set -euo pipefail
python3 -m venv "$(mktemp -d)/venv" && cd "$(dirname "$_")"
venv/bin/pip install --quiet --disable-pip-version-check reasoning-gym==0.1.25
venv/bin/python - <<'PYTHON'
import sys

import reasoning_gym

answers = {"coin_flip": "0", "complex_arithmetic": "nan", "game_of_life_halting": "perhaps", "puzzle24": "6*4*1*1"}
seen = {}
for name, answer in answers.items():
    dataset = reasoning_gym.create_dataset(name, seed=7, size=12)
    seen[name] = sum(dataset.score_answer(answer, item) for item in dataset) / 12
print("version 0.1.25, mean score of one answer for twelve questions:", seen)
sys.exit(0 if all(value == 1.0 for value in seen.values()) else 1)
PYTHON
