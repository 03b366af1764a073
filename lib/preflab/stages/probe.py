"""What G is measured on at one snapshot: some training pairs, or fresh samples of the snapshot's own policy."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from preflab.hardware import precise
from preflab.layout import Batch
from preflab.likelihood import collate, pair_log_probs, token_log_probs
from preflab.measured import PARTS
from preflab.stages.reference import SCORING_BATCH, no_reference
from preflab.stages.training import Training
from preflab.training.rollout import Rollout, Values, collect, reference_of, rows_of
from preflab.weightings import Weights, sign_components

SAME = 1e-4  # relative spread of weights below which they count as equal: a tertile would go by position


@dataclass(frozen=True)
class Probe:
    """n units: pairs (two rows each) or samples (one row)."""

    batch: Batch  # (rows, seq)
    c: torch.Tensor  # (rows, seq - 1)
    parts: dict[str, torch.Tensor]  # PARTS -> its c, (rows, seq - 1)
    weight: torch.Tensor  # w of each pair, or |A| of each response token: one dimension
    n: int
    margins: torch.Tensor | None = None  # (n,), of pairs
    rollout: Rollout | None = None  # of samples

    def pieces(self, size: int, keep: torch.Tensor | None = None) -> Iterator[tuple[Batch, torch.Tensor]]:
        """(batch, c) in chunks of rows, of the rows to keep."""
        rows = torch.arange(len(self.c), device=self.c.device) if keep is None else keep.nonzero().squeeze(1)
        for some in rows.split(size) if len(rows) else ():
            yield rows_of(self.batch, some), self.c[some]

    def half(self, which: int) -> tuple[torch.Tensor, int]:
        """Rows of the first or second half of the units, as a mask, and how many units it has."""
        first = torch.arange(self.n, device=self.c.device) < (self.n + 1) // 2
        unit = first if which == 0 else ~first
        return unit.repeat(len(self.c) // self.n), int(unit.sum())

    def contributions(self, s: torch.Tensor) -> torch.Tensor:
        """(PARTS, n), in float64."""
        per_row = torch.stack([-(precise(self.parts[k]) * precise(s)).sum(1) for k in PARTS])
        return per_row.view(len(PARTS), -1, self.n).sum(1)


def parts_of(weights: Weights, trained: torch.Tensor) -> dict[str, torch.Tensor]:
    """c of each component, (rows, seq - 1). Tertiles of equal weights are NaN: they would go by position."""
    held = weights.weight[weights.held]
    known = bool(held.max() - held.min() > SAME * held.max())
    thirds = {name: weights.tertile(name) for name in ("bottom", "middle", "top")}
    parts = {name: weights.c * mask for name, mask in sign_components(weights.c).items()}
    parts |= {
        name: weights.c * mask if known else torch.full_like(weights.c, torch.nan) for name, mask in thirds.items()
    }
    tokens = weights.c != 0
    uniform = tokens * (weights.c.abs().sum() / tokens.sum().clamp(min=1))
    return parts | {"trained": trained, "uniform": uniform}


def probe_rows(training: Training, n: int) -> list[int]:
    """Which training pairs (or their prompts) G is measured on: the same for all snapshots of a run."""
    order = np.random.default_rng([training.seed, 7]).permutation(len(training.pairs.rows()))
    return sorted(order[:n].tolist())


Look = Callable[[int, PreTrainedModel, Values | None, float, dict], Probe]  # step, policy, values, progress, log


@dataclass(frozen=True)
class PairsProbe:
    """Measure on n training pairs."""

    n: int

    def prepared(self, training: Training, size: int) -> Look:
        """What makes the probe of a snapshot, `size` rows a pass."""
        base, encoded = training.base, training.pairs.encoded(training.base)
        rows, pad = [encoded[i] for i in probe_rows(training, self.n)], base.tokenizer().pad_token_id
        log_probs = no_reference(len(rows))
        if training.method.reference:
            log_probs = pair_log_probs(base.load(scoring=True), rows, pad, SCORING_BATCH)
        of_both = torch.cat([log_probs.chosen, log_probs.rejected])

        def look(step: int, policy: PreTrainedModel, values: None, progress: float, log: dict) -> Probe:
            batch = collate(rows, pad, policy.device)
            log_probs = _in_chunks(policy, batch, size).sum(1)
            c, _, margins = training.method.weigh(log_probs - of_both.to(log_probs), batch["completion_mask"][:, 1:])
            weights = Weights.of_pairs(c, progress, log["live"])
            parts = parts_of(weights, training.rule(weights))
            return Probe(batch, c, parts, weights.weight, len(rows), margins=margins)

        return look


@dataclass(frozen=True)
class SamplesProbe:
    """Measure on n fresh samples of the snapshot's own policy: the ratio is 1, so c = A (and GRPO's KL)."""

    n: int

    def prepared(self, training: Training, size: int) -> Look:
        """What makes the probe of a snapshot, `size` rows a pass."""
        base, rows = training.base, probe_rows(training, self.n)
        prompts = training.pairs.rows().select(rows)["prompt"]
        asked = prompts[: len(rows) // training.method.samples_a_prompt]
        how = {"max_new_tokens": training.max_new_tokens, "size": size, "accelerator": Accelerator()}
        reward = training.reward.load()

        def look(step: int, policy: PreTrainedModel, values: Values | None, progress: float, log: dict) -> Probe:
            method = replace(training.method, kl_coefficient=log["kl_coefficient"])
            seed = [training.seed, step, 1]  # not the samples that training draws
            reference = reference_of(policy, base.load(scoring=True))
            rollout = collect(policy, values, base.tokenizer(), asked, reference, reward, method, seed=seed, **how)
            kl = method.kl_in_loss(rollout.log_probs, rollout.reference_log_probs, rollout.mask)
            whole, of_rewards = (
                Weights.of_tokens(c, rollout.mask, progress, log["live"])
                for c in (rollout.advantages + kl, rollout.advantages)
            )
            parts = parts_of(whole, training.rule(of_rewards) + kl)  # no rule touches the KL
            return Probe(rollout.batch, whole.c, parts, whole.weight[whole.held], len(whole.c), rollout=rollout)

        return look


@torch.no_grad()
def _in_chunks(model: PreTrainedModel, batch: Batch, size: int) -> torch.Tensor:
    rows = len(batch["input_ids"])
    return torch.cat([token_log_probs(model, rows_of(batch, slice(i, i + size))) for i in range(0, rows, size)])
