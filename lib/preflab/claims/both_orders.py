"""An objective beside another one, after every order of training: what notebooks 06 and 07 measure and judge alike."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from preflab.claims import Claim, decide
from preflab.margins import Outcome, outcome
from preflab.statistics import Interval


@dataclass(frozen=True, kw_only=True)
class BothOrders:
    """Policy margins of the held-out pairs of one objective, the own: (seeds, pairs), in nats per token."""

    base: np.ndarray
    alone: np.ndarray  # after a stage on the own objective
    alone_dpo: np.ndarray  # the DPO margins then, nats
    other_alone: np.ndarray  # after a stage on the other one
    then_other: np.ndarray  # own, then other
    last: np.ndarray  # other, then own
    clusters: np.ndarray | None = None  # the prompt of each pair, (pairs,); None: each has its own

    @cached_property
    def outcome(self) -> Outcome:
        """The verdict of notebook 01 on own, then other."""
        return outcome(self.base, self.alone, self.then_other, self.alone_dpo, self.clusters)

    @property
    def learned(self) -> bool:
        """Whether Stage 1 taught the own objective; the other one has nothing to do with it."""
        return self.outcome.verdict != "not learned"

    @property
    def gain(self) -> float:
        """What the own objective gains alone."""
        return float((self.alone - self.base).mean())

    @property
    def change(self) -> np.ndarray:
        """What Stage 2 did: (seeds, pairs)."""
        return self.then_other - self.alone

    @property
    def share(self) -> float:
        """What Stage 2 did, a share of the own gain."""
        return float(self.change.mean()) / self.gain

    @property
    def order(self) -> float:
        """What the objective ends with if it comes last, less if it comes first, a share of the own gain."""
        return self.end("last") - self.end("then_other")

    def end(self, arm: str, skipped: int = 0) -> float:
        """What is left at the end of an arm, a share of the gain; without the first `skipped` pairs."""
        return self._share(arm, slice(skipped, None))

    def transfer(self, pairs: int | None = None) -> float:
        """What a stage on the other objective alone does to the own margins, a share of the own gain; of the first
        `pairs`."""
        return self._share("other_alone", slice(pairs))

    def _share(self, arm: str, pairs: slice) -> float:
        found, gained = ((margins - self.base)[:, pairs].mean() for margins in (getattr(self, arm), self.alone))
        return float(found / gained)


def order_matters(contrast: Interval, over: str, least: float) -> Claim:
    """S3, of the mean of `BothOrders.order` over so many; within `least` it does not count."""
    return Claim(
        "S3",
        "What happens depends on the training order.",
        "What an objective ends with if it comes last, less if it comes first, on the same pairs, a share of the gain; "
        f"mean over {over}. Reproduced: interval leaves out 0; not reproduced: within ±{least}.",
        contrast.value,
        (contrast.low, contrast.high),
        decide(contrast.low * contrast.high > 0 and not contrast.within(least), contrast.within(least)),
    )
