#!/usr/bin/env bash
# transformers 5.19.0: AutoTokenizer compares a list of hub names with the path that it is given.
#
# Expected: files in a local directory give the same tokenizer wherever the directory lies, the one that tokenizer.json describes.
# Seen: below deepseek-ai/deepseek-coder-* they do; anywhere else the class that the files name builds another one from the
# vocabulary alone, with rules of its own, and every space is lost. Nothing warns.
#
# Status 0 while that is so, 1 once it is not.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet transformers==5.19.0 tokenizers==0.23.3
cd "$place"
HF_HUB_OFFLINE=1 "$place/venv/bin/python" - <<'PROGRAM'
import json
import shutil
import sys
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

TEXT = "Please work out 24+7."
described = Tokenizer(models.BPE())
described.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
described.decoder = decoders.ByteLevel()
alphabet = pre_tokenizers.ByteLevel.alphabet()
trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False)
described.train_from_iterator([TEXT] * 20, trainer)

spared, other = Path("deepseek-ai/deepseek-coder-small"), Path("checkpoints/small")
spared.mkdir(parents=True)
described.save(str(spared / "tokenizer.json"))
settings = {"tokenizer_class": "LlamaTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
(spared / "tokenizer_config.json").write_text(json.dumps(settings))
(spared / "config.json").write_text(json.dumps({"model_type": "llama"}))
shutil.copytree(spared, other)

wanted = described.encode(TEXT, add_special_tokens=False).ids
found = {}
for path in (spared, other):
    tokenizer = AutoTokenizer.from_pretrained(str(path))
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    found[path] = ids == wanted, tokenizer.decode(ids)
    print(f"{path}: {type(tokenizer).__name__}, as tokenizer.json: {ids == wanted}, decoded: {tokenizer.decode(ids)!r}")
as_described = found == {spared: (True, TEXT), other: (False, "Pleaseworkout24+7.")}
print("as described" if as_described else "changed")
sys.exit(not as_described)
PROGRAM
