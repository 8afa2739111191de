"""The preference kernel: margins between completions, against a frozen reference.

    Delta(y) = sum_t log pi(y_t)/ref(y_t)   (or its mean over tokens)
    paired:    L = mean over pairs of  p f(h) + (1 - p) f(-h) + anchors,   h = Delta(chosen) - Delta(rejected)
    unpaired:  KTO, on completions labelled good (A > 0) or bad

Pairs are built by the shaping stage; reference logprobs are a cached `scores` artifact of the base model, or of the policy
that the training starts from.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from pipeline.algorithms.algorithm import Algorithm
from pipeline.algorithms.cells.advantages import Signed
from pipeline.algorithms.cells.cell import PAIRS, PROXIMAL, REFERENCE, WEIGHT, Cell, NotNegative, Positive
from pipeline.algorithms.cells.pairing import RewardPairs
from pipeline.algorithms.tokens import Loss, Tokens, Totals

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


class Margin(Protocol):
    """f(h) of a pair."""

    @property
    def needs(self) -> tuple[str, ...]: ...
    @property
    def whole_step(self) -> bool: ...
    @property
    def length_normalized(self) -> bool: ...
    @property
    def reference(self) -> str:
        """Whose logprobs Delta is against: those of the base model, or of the policy that this training starts from."""
        ...

    @property
    def token_weighted(self) -> bool:
        """Whether tokens weigh in Delta as an expert's revision says: those that it changed more than the others."""
        ...

    def loss(self, margin: Float[Tensor, " pairs"]) -> Float[Tensor, " pairs"]: ...


class _OfReference(Cell):
    __slots__ = ()
    needs = (REFERENCE,)
    whole_step = True
    reference: ClassVar[str] = REFERENCE
    token_weighted: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Logistic(_OfReference):
    """f(h) = -log sigmoid(beta h). Source: DPO, arXiv:2305.18290."""

    beta: Positive = 0.1
    length_normalized: bool = False

    def loss(self, margin: Float[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
        import torch

        return -torch.nn.functional.logsigmoid(self.beta * margin)


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnLogistic(Logistic):
    """f(h) = -log sigmoid(beta h), with the policy that this training starts from as reference.

    Tokens weigh as an expert's revision says; without revisions every token weighs 1.
    """

    needs = (PROXIMAL,)
    reference: ClassVar[str] = PROXIMAL
    token_weighted: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True, slots=True)
class SquaredMargin(_OfReference):
    """f(h) = (h - 1/(2 tau))^2 on sums over the completion: the paper's tau. Source: IPO, arXiv:2310.12036.

    (TRL's `ipo` takes means over tokens; set length_normalized for that.)
    """

    tau: Positive = 0.1
    length_normalized: bool = False

    def loss(self, margin: Float[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
        return (margin - 1 / (2 * self.tau)) ** 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Hinge(_OfReference):
    """f(h) = max(0, 1 - beta h). Source: SLiC, arXiv:2305.10425, with the reference's logprobs as in RSO."""

    beta: Positive = 0.1
    length_normalized: bool = False

    def loss(self, margin: Float[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
        return (1 - self.beta * margin).clamp(min=0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class ChosenAnchor(Cell):
    """coefficient x -log sigmoid(slope Delta(chosen) - offset): keeps the chosen completion from becoming less likely.

    A margin alone can grow while both completions fall. Source: OPA-DPO, arXiv:2501.09695, where slope is
    the margin's beta; here they are two settings.
    """

    coefficient: NotNegative = 0.0
    slope: Positive = 0.1
    offset: float = 0.0

    def loss(self, chosen: Float[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
        import torch

        return -self.coefficient * torch.nn.functional.logsigmoid(self.slope * chosen - self.offset)


@dataclass(frozen=True, kw_only=True, slots=True)
class Prospect(_OfReference):
    """w_D (1 - sigmoid(beta (Delta - z0))) of good completions, w_U (1 - sigmoid(beta (z0 - Delta))) of bad ones.

    z0 is a constant of the gradient: max(0, mean Delta over the step's completions), or 0. (TRL estimates it on prompts
    paired with other prompts' completions, which takes another forward pass.) Source: KTO, arXiv:2402.01306.
    """

    beta: Positive = 0.1
    desirable: float = 1.0
    """w_D. The paper wants w_D n_D / (w_U n_U) between 1 and 4/3."""
    undesirable: float = 1.0
    """w_U."""
    reference_point: Literal["step_mean", "zero"] = "step_mean"

    def losses(self, moved: Float[Tensor, " sequences"], good: Float[Tensor, " sequences"]) -> Float[Tensor, " sequences"]:
        """Loss of each completion, from its Delta and whether it is good."""
        point = moved.detach().mean().clamp(min=0.0) if self.reference_point == "step_mean" else moved.new_zeros(())
        desirable = self.desirable * (1 - (self.beta * (moved - point)).sigmoid())
        undesirable = self.undesirable * (1 - (self.beta * (point - moved)).sigmoid())
        return desirable.where(good > 0, undesirable)


@dataclass(frozen=True, kw_only=True, slots=True)
class Preference(Algorithm):
    """A pairwise algorithm."""

    margin: Margin
    anchors: tuple[ChosenAnchor, ...] = (ChosenAnchor(),)
    pairing: RewardPairs = field(default_factory=RewardPairs)

    kernel: ClassVar[str] = "preference"
    loss_cells: ClassVar[tuple[str, ...]] = ("margin", "anchors")
    shaping_cells: ClassVar[tuple[str, ...]] = ("reward", "filters", "advantage", "weighting", "pairing")

    @property
    def dead_at(self) -> tuple[str, ...]:
        return (PAIRS,)

    @property
    def weighs_tokens(self) -> bool:
        return bool(getattr(self.margin, "token_weighted", False))

    def loss(self, tokens: Tokens, totals: Totals) -> Loss:
        import torch

        assert tokens.pairs is not None and tokens.preference is not None
        reference = tokens.proximal if self.margin.reference == PROXIMAL else tokens.reference
        moved = _moved_from(tokens, reference, tokens.token_weight if self.weighs_tokens else None)
        if self.margin.length_normalized:
            moved = moved / tokens.lengths.clamp(min=1.0)
        chosen, rejected = moved[tokens.pairs[:, 0]], moved[tokens.pairs[:, 1]]
        p, margin = tokens.preference, chosen - rejected
        losses = p * self.margin.loss(margin) + (1 - p) * self.margin.loss(-margin)
        losses = losses + sum(anchor.loss(chosen) for anchor in self.anchors if anchor.coefficient)
        return Loss(value=losses.sum() / max(len(losses), 1), stopped=torch.zeros_like(tokens.mask))


@dataclass(frozen=True, kw_only=True, slots=True)
class UnpairedPreference(Algorithm):
    """Completions labelled good or bad by the sign of their advantage."""

    prospect: Prospect = field(default_factory=Prospect)

    kernel: ClassVar[str] = "unpaired_preference"
    loss_cells: ClassVar[tuple[str, ...]] = ("prospect",)

    @property
    def dead_at(self) -> tuple[str, ...]:
        """A reference point that is the mean of the step reads every completion."""
        return (WEIGHT,) if self.prospect.reference_point == "zero" else ()

    def loss(self, tokens: Tokens, totals: Totals) -> Loss:
        import torch

        losses = self.prospect.losses(_moved_from(tokens, tokens.reference), tokens.advantage)
        value = (tokens.weight * losses).sum() / max(totals.sequences, 1)
        return Loss(value=value, stopped=torch.zeros_like(tokens.mask))


def _moved_from(
    tokens: Tokens, reference: Float[Tensor, " tokens"] | None, weight: Float[Tensor, " tokens"] | None = None
) -> Float[Tensor, " sequences"]:
    """sum_t w_t log pi/ref of each completion."""
    assert reference is not None
    moved = (tokens.logprobs - reference).where(tokens.mask, tokens.logprobs.new_zeros(()))
    return tokens.per_sequence(moved if weight is None else moved * weight)


DPO = Preference(
    name="dpo",
    summary="Logistic loss on the margin between a better and a worse completion of one prompt.",
    formula="-log sigmoid(beta h),  h = log pi/ref of the chosen - log pi/ref of the rejected",
    paper="arXiv:2305.18290",
    margin=Logistic(),
)
IPO = DPO.replace(
    name="ipo",
    summary="Squared loss that stops pushing once the margin is 1/(2 tau).",
    formula="(h - 1/(2 tau))^2",
    paper="arXiv:2310.12036",
    margin=SquaredMargin(),
)
IPO_MD = IPO.replace(
    name="ipo-md",
    summary=(
        "IPO on all pairs of a group with soft preferences, the loss of online IPO and IPO-MD. Online IPO draws both completions "
        "from the policy itself, IPO-MD from a mixture of policy and reference, token by token: generate.mixture does that."
    ),
    formula="p (h - 1/(2 tau))^2 + (1-p) (-h - 1/(2 tau))^2,  p = sigmoid((r - r')/soft), 1/2 for equals",
    paper="arXiv:2403.08635",
    margin=SquaredMargin(tau=1.0),
    pairing=RewardPairs(strategy="all", soft=1.0, ties=True),
)
SLIC = DPO.replace(
    name="slic",
    summary="Hinge loss on the margin.",
    formula="max(0, 1 - beta h)",
    paper="arXiv:2305.10425",
    margin=Hinge(),
)
OPA_DPO = DPO.replace(
    name="opa-dpo",
    summary=(
        "The last step of OPA-DPO: DPO against the policy that this training starts from, which was first fine-tuned on the "
        "preferred completions (sft, raft or best-of-n), and an anchor that keeps the chosen ones likely. What a revision "
        "changed weighs more than what it kept (see docs/revision.md); without revisions all tokens weigh 1."
    ),
    formula=(
        "-log sigmoid(beta h) - coefficient log sigmoid(slope Delta(chosen) - offset),  Delta = sum_t w_t log pi/prox,  "
        "w_t = 1 without revisions"
    ),
    paper="arXiv:2501.09695",
    margin=OwnLogistic(),
    anchors=(ChosenAnchor(coefficient=1.0),),
)
KTO = UnpairedPreference(
    name="kto",
    summary="Prospect-theoretic loss on completions that are good or bad; needs no pairs.",
    formula="w_D (1 - sigmoid(beta (Delta - z0))) if good, w_U (1 - sigmoid(beta (z0 - Delta))) if bad",
    paper="arXiv:2402.01306",
    advantage=Signed(),
)

ALGORITHMS = (DPO, IPO, IPO_MD, SLIC, OPA_DPO, KTO)
