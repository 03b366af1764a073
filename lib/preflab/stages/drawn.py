"""Samples and pairs of any sampler, with what a method would weigh them by."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.special import expit
from transformers import PreTrainedModel

from preflab.decoding import Decoding, next_tokens_of_all, pieces, said
from preflab.generation import Sample, decode
from preflab.layout import Batch
from preflab.likelihood import collate, collate_responses, token_log_probs
from preflab.methods.method import Scored
from preflab.rewards import utilities
from preflab.stages.probe import probe_rows
from preflab.stages.training import Training, TrainingFromPairs
from preflab.training.rollout import Values, evaluate, one_seed, reference_of

if TYPE_CHECKING:
    from preflab.stages.data import Pairs

Weigh = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Own:
    """The policy's own samples, drawn with some decoding."""

    decoding: Decoding = Decoding()  # noqa: RUF009  a frozen value

    def __str__(self) -> str:
        decoding = self.decoding
        return f"top-p {decoding.top_p:g}" if decoding.top_p < 1 else f"temperature {decoding.temperature:g}"


@dataclass(frozen=True)
class Earlier:
    """Samples that the policy of an earlier step has drawn, at temperature 1."""

    step: int

    def __str__(self) -> str:
        return f"policy after {self.step}"


@dataclass(frozen=True)
class Generator:
    """Training pairs of a world, which its generator has made."""

    pairs: "Pairs"

    def __str__(self) -> str:
        return f"generator, shift {self.pairs.of.world.shift:g}"


Source = Own | Earlier | Generator


@dataclass(frozen=True)
class Drawn:
    """n samples (a row each), or n pairs (chosen rows above rejected ones)."""

    batch: Batch
    n: int
    log_q: torch.Tensor | None  # the sampler's, (tokens, vocabulary); None if nobody knows it
    weigh: Weigh  # from token log-probs of a policy: c, size of each token, factor; each (rows, seq - 1)


class SamplesDrawer:
    """What PPO would learn from, in the place of the probe's prompts. As in PPO, the log-probs of the samples are those
    of the policy at temperature 1, whatever the decoding; so the ratio knows of staleness, and not of the decoding."""

    def __init__(self, training: Training, n: int, max_new_tokens: int, size: int):
        self.training, self.max_new_tokens, self.size = training, max_new_tokens, size
        self.prompts = prompts_of(training, n)
        self.reward, self.history = training.reward.load(), training.load()

    def draw(self, policy: PreTrainedModel, values: Values | None, step: int, decoding: Decoding) -> Drawn:
        samples = _responses(self, policy, decoding, [self.training.seed, step, 2])
        batch = collate_responses(samples, self.training.base.tokenizer().pad_token_id, policy.device)
        log_probs = next_tokens_of_all(policy, batch, self.size)
        old, mask = said(log_probs, batch), batch["completion_mask"][:, 1:]
        advantages = self._advantages(policy, values, step, samples, batch)

        def weigh(now: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            c, _, clipped = self.training.method.clipped_weighting(now, old, advantages, mask)
            return c, advantages.abs(), torch.exp(now - old) * ~clipped * mask

        return Drawn(batch, len(samples), decoding.sampler(log_probs), weigh)

    @torch.no_grad()
    def _advantages(self, policy, values, step: int, samples: list[Sample], batch: Batch) -> torch.Tensor:
        """As an iteration that begins at `step` makes them, (n, seq - 1)."""
        base, log = self.training.base, self.history[min(self.training.logged_at(step), len(self.history) - 1)]
        parts = list(pieces(batch, self.size))
        log_probs, v = (torch.cat(x) for x in zip(*(evaluate(policy, values, part) for part in parts), strict=True))
        reference = torch.cat([reference_of(policy, base.load(scoring=True))(part) for part in parts])
        eos = base.tokenizer().eos_token_id
        finished = torch.tensor([ids[-1:] == [eos] for _, ids in samples], device=policy.device)
        scores = self.reward(self.prompts, samples).to(log_probs)
        scored = Scored(scores, finished, log_probs - reference, v, batch["completion_mask"][:, 1:])
        return replace(self.training.method, kl_coefficient=log["kl_coefficient"]).advantages(scored)[0]


class PairsDrawer:
    """What DPO would learn from: pairs of two samples for each of the probe's prompts, labelled as the world labels its
    own, P(first preferred) = sigmoid((u - u') / T). Ties stay, with labels of a coin: without them two samples would
    not be independent draws any more."""

    def __init__(self, training: TrainingFromPairs, n: int, max_new_tokens: int, size: int):
        self.training, self.n, self.max_new_tokens, self.size = training, n, max_new_tokens, size
        self.prompts = prompts_of(training, n)
        self.temperature = training.pairs.of.world.temperature(training.pairs.of.objective)

    def draw(self, policy: PreTrainedModel, values: None, step: int, decoding: Decoding) -> Drawn:
        seed = [self.training.seed, step, 2]
        both = [_responses(self, policy, decoding, [*seed, side]) for side in range(2)]
        first = self._first_preferred(both, np.random.default_rng(seed))
        pairs = [(a, b) if first_ else (b, a) for a, b, first_ in zip(*both, first, strict=True)]
        samples = [chosen for chosen, _ in pairs] + [rejected for _, rejected in pairs]
        batch = collate_responses(samples, self.training.base.tokenizer().pad_token_id, policy.device)
        return self._drawn(batch, decoding.sampler(next_tokens_of_all(policy, batch, self.size)))

    def of(self, pairs: "Pairs", device: torch.device) -> Drawn:
        """Pairs that are there: at the same places as the probe's."""
        encoded, base = pairs.encoded(self.training.base), self.training.base
        rows = [encoded[i] for i in probe_rows(self.training, self.n)]
        return self._drawn(collate(rows, base.tokenizer().pad_token_id, device), None)

    def _first_preferred(self, both: Sequence[list[Sample]], rng: np.random.Generator) -> np.ndarray:
        objective, tokenizer = self.training.pairs.of.utility, self.training.base.tokenizer()
        u, v = (utilities(objective, self.prompts, decode(tokenizer, side)) for side in both)
        return rng.random(len(u)) < expit((u - v) / self.temperature)

    @torch.no_grad()
    def _drawn(self, batch: Batch, log_q: torch.Tensor | None) -> Drawn:
        base, mask = self.training.base.load(scoring=True), batch["completion_mask"][:, 1:]
        reference = torch.cat([token_log_probs(base, part).sum(1) for part in pieces(batch, self.size)])

        def weigh(now: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            c = self.training.method.weigh(now.sum(1) - reference, mask).c
            return c, c.abs(), mask

        return Drawn(batch, len(mask) // 2, log_q, weigh)


def prompts_of(training: Training, n: int) -> list[list[dict]]:
    """The prompts of the probe, as 02 measures on them."""
    return training.pairs.rows().select(probe_rows(training, n))["prompt"]


def _responses(drawer: SamplesDrawer | PairsDrawer, policy, decoding: Decoding, seed: Sequence[int]) -> list[Sample]:
    how = {"max_new_tokens": drawer.max_new_tokens, "seed": one_seed(*seed), "batch_size": drawer.size}
    return decoding.draw(policy, drawer.training.base.tokenizer(), drawer.prompts, **how)
