"""Peak memory of the loss part: tiled logprobs against all logits at once.

    python benchmarks/loss_memory.py                 # 8,192 completion tokens, 150k vocabulary
    python benchmarks/loss_memory.py --tokens 512    # a quick look

Each contender runs in a process of its own: hidden states and the projection are made first, then the peak of forward and
backward pass over what is held by then is measured. Gradients of hidden states and projection count for all of them.

    rollbook  pipeline.train.logprobs, completions of 512 tokens
    longest   the same, one completion of all tokens, longer than the exponentials that are kept
    naive     logits = hidden W^T, log_softmax, gather
    liger     liger_kernel's fused linear cross-entropy: the negative logprobs' sum, so no ratio could be formed (GPU only)
    cce       cut_cross_entropy's linear_cross_entropy, one loss per token, no entropy (GPU only)
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from training_task import Memory, machine, record

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Sum of the logprobs of targets, from hidden states and weight, whose gradients it leaves in them."""


def rollbook(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return _rollbook(hidden, weight, targets, 512)


def longest(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return _rollbook(hidden, weight, targets, len(hidden))


def _rollbook(hidden: Tensor, weight: Tensor, targets: Tensor, completion: int) -> Tensor:
    from pipeline.train.batch import Chunk
    from pipeline.train.following import Following
    from pipeline.train.head import tokens_of_chunk
    from pipeline.train.logprobs import Projection

    temperature = torch.ones(len(hidden), device=hidden.device)
    size = min(max(tokens_of_chunk(len(weight), hidden.device) // completion, 1) * completion, len(hidden))
    projection = Projection(hidden.detach(), weight, None, Following.one_each(targets), temperature, size)
    total = torch.zeros((), device=hidden.device)
    for start in range(0, len(hidden), size):
        here = slice(start, min(start + size, len(hidden)))
        loss = projection(Chunk(slice(0), here, (here,), (here,)))[0].sum()
        torch.autograd.backward(loss)
        total += loss.detach()
    projection.backward(hidden)
    return total


def naive(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return _backward((hidden @ weight.T).float().log_softmax(-1).gather(-1, targets[:, None]).sum())


def _backward(loss: Tensor) -> Tensor:
    torch.autograd.backward(loss)
    return loss.detach()


def liger(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    return _backward(-LigerFusedLinearCrossEntropyLoss(reduction="sum")(weight, hidden, targets))


def cce(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    from cut_cross_entropy import linear_cross_entropy

    return _backward(-linear_cross_entropy(hidden, weight, targets, reduction="none").sum())


CONTENDERS: dict[str, Loss] = {"rollbook": rollbook, "longest": longest, "naive": naive, "liger": liger, "cce": cce}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--vocabulary", type=int, default=151936)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--contender", type=lambda text: text.split(","), default=["rollbook", "longest", "naive"])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/training_loss_memory.json"))
    parser.add_argument("--work", choices=list(CONTENDERS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        print(json.dumps(measured(CONTENDERS[args.work], args)))
        return
    settings = [f"--{name}={getattr(args, name)}" for name in ("tokens", "vocabulary", "width", "dtype")]
    figures = {}
    for name in args.contender:
        command = [sys.executable, __file__, *settings, "--work", name]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        figures[name] = json.loads(done.stdout.splitlines()[-1])
        print(f"{name:9s} {figures[name]['peak_mib']:9.0f} MiB   {figures[name]['seconds']:.2f} s   {figures[name]['sum']:.2f}")
    if {"rollbook", "naive"} <= figures.keys():
        share = figures["rollbook"]["peak_mib"] / figures["naive"]["peak_mib"]
        print(f"rollbook's peak is {share:.3f} of the naive one's")
    key = f"{args.tokens} tokens, vocabulary {args.vocabulary}, width {args.width}, {args.dtype}"
    command_line = "python benchmarks/loss_memory.py " + " ".join([*settings, f"--contender={','.join(args.contender)}"])
    record(args.out, key, {"machine": machine(), "command": command_line, "contenders": figures})


def measured(loss: Loss, args: argparse.Namespace) -> dict[str, float]:
    """Peak memory, MiB, and seconds of one forward and backward pass."""
    torch.manual_seed(0)
    kind = getattr(torch, args.dtype)
    hidden = torch.randn(args.tokens, args.width, device=DEVICE, dtype=kind, requires_grad=True)
    weight = (0.05 * torch.randn(args.vocabulary, args.width, device=DEVICE, dtype=kind)).requires_grad_()
    targets = torch.randint(args.vocabulary, (args.tokens,), device=DEVICE)
    (hidden[:1] @ weight[:64].T).sum().backward()
    hidden.grad = weight.grad = None
    memory = Memory()
    started = time.perf_counter()
    total = float(loss(hidden, weight, targets))
    return {"peak_mib": memory.peak() / 2**20, "seconds": time.perf_counter() - started, "sum": total}


if __name__ == "__main__":
    main()
