"""G along a training run: at every snapshot, of every component, with its noise, by layer, by token, under Adam.

At a snapshot theta_t, with v = grad of the NLL of D' and c of the run's own method on a probe:

    contribution of pair or sample i to component k:   - sum_{t in k} c[i,t] * s[i,t]
    G(k) = mean of the contributions over the probe

Both the probe (n pairs or samples) and D' are cut in halves; the four corners of a measurement tell its noise.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from preflab import alignment, dynamics, runs
from preflab.bases import base_model, base_tokenizer, data_key, encoded
from preflab.dynamics import Training
from preflab.generation import Sample
from preflab.likelihood import PairLogProbs, collate, collate_responses, pair_log_probs, token_log_probs
from preflab.models import precise
from preflab.parameters import DynamicsSettings
from preflab.training.ppo import Batch, Values, collect, kl_in_loss, rows_of
from preflab.weightings import Weights, sign_components

COMPONENTS = ("whole", "positive", "negative", "bottom", "middle", "top")
PARTS = (*COMPONENTS, "trained")  # what the run's rule makes of the whole; the whole itself for a plain method


@dataclass(frozen=True)
class Measured:
    """G of one run at S steps, in nats per unit of step size. Component axes are in the order of PARTS.

    Log-probs are summed over a response, of n held-out pairs: (S, 2 sides, n).
    """

    steps: np.ndarray  # (S,) updates so far
    contributions: np.ndarray  # (S, 2 halves of D', PARTS, n of the probe)
    layers: list[dict[str, dict[str, float]]]  # a step: component (whole, positive, negative) -> place -> G
    cosine: np.ndarray  # (S,) of v and the gradient of the whole loss
    ceilings: np.ndarray  # (S, 2) cosines of the two halves: of D' and of the probe
    weights: list[np.ndarray]  # a step: w of each pair, or |A| of each response token
    total_weight: np.ndarray  # (S, PARTS) sum of |c| / n
    margins: np.ndarray | None  # (S, n) DPO's beta * Delta
    nll: np.ndarray  # (S,) of D'
    predicted: np.ndarray  # (S,) v . (theta_{t+1} - theta_t), the optimiser's real step; NaN at the last
    changed: np.ndarray  # (S,) NLL(theta_{t+1}) - NLL(theta_t)
    step_cosine: np.ndarray  # (S,) of that step and descent on the probe's loss
    tokens: list[list[dict]]  # a step: rows shown token by token
    held_out: np.ndarray

    @property
    def g(self) -> np.ndarray:
        """(S, PARTS)."""
        return self.contributions.mean((1, 3))

    def noise(self) -> np.ndarray:
        """Standard error of G from split halves, (S, PARTS): half the difference of the two halves of the
        probe, and of the two halves of D', in quadrature. Two halves give a rough number: average its square."""
        halves = np.array_split(self.contributions, 2, axis=3)
        of_probe = np.subtract(*(h.mean((1, 3)) for h in halves)) / 2
        of_finals = (self.contributions[:, 0] - self.contributions[:, 1]).mean(-1) / 2
        return np.hypot(of_probe, of_finals)


@dataclass(frozen=True)
class Probe:
    """What G is measured on at one snapshot. n units are pairs (two rows each) or samples (one row)."""

    batch: Batch  # (rows, seq)
    c: torch.Tensor  # (rows, seq - 1)
    parts: dict[str, torch.Tensor]  # PARTS -> its c, (rows, seq - 1)
    weight: torch.Tensor  # w of each pair, or |A| of each response token: one dimension
    n: int
    margins: torch.Tensor | None = None

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


def measure(p: DynamicsSettings, training: Training) -> Path:
    """Measure G at every snapshot of a run (unless cached); returns the cache entry."""
    return runs.cache().entry("alignment", _key(p, training), lambda folder: _build(p, training, folder))


def is_measured(p: DynamicsSettings, training: Training) -> bool:
    return runs.cache().folder("alignment", _key(p, training)).exists()


def examine(p: DynamicsSettings, training: Training) -> None:
    """`measure`, and what `load_learnt` needs (unless cached)."""
    measure(p, training)
    load_learnt(p, training)


def is_examined(p: DynamicsSettings, training: Training) -> bool:
    return is_measured(p, training) and runs.cache().folder("learnt", _learnt_key(p, training)).exists()


def load_learnt(p: DynamicsSettings, training: Training) -> np.ndarray:
    """Change of the log-probs of *all* of a run's training pairs since the SFT model, at its end: (2 sides, n)."""
    entry = runs.cache().entry("learnt", _learnt_key(p, training), lambda folder: _build_learnt(p, training, folder))
    return load_file(entry / "change.safetensors")["change"].numpy()


def _learnt_key(p: DynamicsSettings, training: Training) -> dict:
    pairs = [data_key(p, p.source, p.objective, training.seed), p.train_pairs, p.test_pairs, p.context]
    return {"of": dynamics.training_key(p, training), "pairs": pairs}


def _build_learnt(p: DynamicsSettings, training: Training, folder: Path) -> None:
    rows, pad = encoded(p, dynamics.pairs_of(p, training.seed).train), base_tokenizer(p).pad_token_id
    before = pair_log_probs(base_model(p), rows, pad, p.measure_batch)
    with dynamics.final_model(p, training) as policy:
        after = pair_log_probs(policy, rows, pad, p.measure_batch)
    change = torch.stack([after.chosen - before.chosen, after.rejected - before.rejected])
    save_file({"change": change}, folder / "change.safetensors")


def _key(p: DynamicsSettings, training: Training) -> dict:
    return {"answers": dynamics.answers_key(p, training), "probe": p.probe, "nll": p.nll, "shown": p.shown}


def _build(p: DynamicsSettings, training: Training, folder: Path) -> None:
    meter = _Meter(p, training)
    if p.snapshots == "keep":
        dynamics.snapshots(p, training, meter)
    else:
        with dynamics.trained(p, training, meter):
            pass
    meter.save(folder)


class _Meter:
    """Called with the states of a run in order; measures at the steps that are due, and at the step after each
    what the optimiser's real update has done."""

    def __init__(self, p: DynamicsSettings, training: Training):
        self.p, self.training = p, training
        self.due = dynamics.measured_steps(p, training)
        self.tokenizer, base = base_tokenizer(p), base_model(p)
        final = dynamics.load_answers(p, training).final
        final = final[: len(final) // 2 * 2]  # halves of equal size, whose mean is the whole
        self.finals = [self._batches(half, base.device) for half in (final[::2], final[1::2])]
        self.pairs = dynamics.probe_pairs(p, training.seed)
        self.train_rows = encoded(p, self.pairs)
        self.test_rows = encoded(p, dynamics.pairs_of(p, 0).test)
        self.records: list[dict] = []
        self.arrays: dict[str, torch.Tensor] = {}
        self.before: dict | None = None
        self.history = dynamics.load_history(p, training)
        if training.from_pairs:
            self.reference = dynamics.reference_log_probs(p, training, self.train_rows)
        else:
            self.reward = dynamics.reward_of(p, training)

    def _batches(self, samples: list[Sample], device: torch.device) -> list[Batch]:
        size = self.p.measure_batch
        chunks = [samples[i : i + size] for i in range(0, len(samples), size)]
        return [collate_responses(chunk, self.tokenizer.pad_token_id, device) for chunk in chunks]

    def __call__(self, step: int, policy: PreTrainedModel, values: Values | None) -> None:
        parameters = alignment.parameters_of(policy)
        if self.before is not None and step == self.before["step"] + 1:
            self._after_update(policy, parameters)
        if step in self.due:
            training = policy.training
            policy.eval()
            self._measure(step, policy, values, parameters)
            policy.train(training)

    def _measure(self, step: int, policy: PreTrainedModel, values: Values | None, parameters) -> None:
        p, size = self.p, self.p.measure_batch
        progress = min(step / self.due[-1], 1 - 1e-9)
        look = self._pairs_probe if self.training.from_pairs else self._samples_probe
        probe = look(step, policy, values, progress)
        halves = [alignment.nll_gradient(policy, batches, parameters, p.nll) for batches in self.finals]
        v = {name: (halves[0][name] + halves[1][name]) / 2 for name in parameters}
        s = [
            torch.cat([alignment.token_alignment(policy, batch, half) for batch, _ in probe.pieces(size)])
            for half in halves
        ]
        by_half, shares = [], []
        for rows, n in (probe.half(0), probe.half(1)):
            by_half.append(alignment.loss_gradient(policy, probe.pieces(size, rows), parameters, n))
            shares.append(n / probe.n)
        gradient = {name: shares[0] * by_half[0][name] + shares[1] * by_half[1][name] for name in parameters}
        up = (probe.c > 0).any(1)
        positive = alignment.loss_gradient(
            policy, ((b, c.clamp(min=0)) for b, c in probe.pieces(size, up)), parameters, probe.n
        )
        layers = {"whole": alignment.by_layer(gradient, v), "positive": alignment.by_layer(positive, v)}
        layers["negative"] = {place: layers["whole"][place] - layers["positive"][place] for place in layers["whole"]}
        nll = alignment.mean_nll(policy, [b for half in self.finals for b in half], p.nll)
        number = len(self.records)
        self.arrays |= {
            f"{number}.contributions": torch.stack([_contributions(probe, half) for half in s]).float().cpu(),
            f"{number}.weights": probe.weight.float().cpu(),
            f"{number}.held_out": self._log_probs(policy, self.test_rows),
        }
        if probe.margins is not None:
            self.arrays[f"{number}.margins"] = probe.margins.float().cpu()
        self.records.append(
            {
                "step": step,
                "layers": layers,
                "cosine": alignment.cosine(v, gradient),
                "ceilings": [alignment.cosine(*halves), alignment.cosine(*by_half)],
                "total_weight": [float(probe.parts[k].abs().sum()) / probe.n for k in PARTS],
                "nll": nll,
                "tokens": self._tokens(probe, (s[0] + s[1]) / 2),
            }
        )
        here = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        self.before = {"step": step, "v": v, "gradient": gradient, "parameters": here, "nll": nll}

    def _after_update(self, policy: PreTrainedModel, parameters) -> None:
        """The optimiser's own step: what v predicts of it and what it did to the NLL of D'."""
        before = self.before["parameters"]
        moved = {n: precise(parameter.detach()) - precise(before[n]) for n, parameter in parameters.items()}
        nll = alignment.mean_nll(policy, [b for half in self.finals for b in half], self.p.nll)
        self.records[-1] |= {
            "predicted": alignment.dot(self.before["v"], moved),
            "changed": nll - self.before["nll"],
            "step_cosine": -alignment.cosine(moved, self.before["gradient"]),
        }
        self.before = None

    def _log_at(self, update: int, updates: int = 1) -> dict:
        """The log of the step (of so many updates) that begins or goes on after `update`."""
        return self.history[min(update // updates, len(self.history) - 1)]

    def _pairs_probe(self, step: int, policy: PreTrainedModel, values: None, progress: float) -> Probe:
        p, n = self.p, len(self.train_rows)
        batch = collate(self.train_rows, self.tokenizer.pad_token_id, policy.device)
        mask = batch["completion_mask"][:, 1:]
        log_probs = _in_chunks(policy, batch, p.measure_batch).sum(1)
        reference = _both_sides(self.reference).to(log_probs)
        beta = dynamics.dpo_settings(p, self.training).beta
        c, _, margins = self.training.weighting(log_probs - reference, mask, beta)
        weights = Weights.of_pairs(c, progress, self._log_at(step)["live"])
        return Probe(batch, c, _parts(weights, self.training.rule(weights)), weights.weight, n, margins)

    def _samples_probe(self, step: int, policy: PreTrainedModel, values: Values | None, progress: float) -> Probe:
        """Fresh samples of the snapshot's own policy: on-policy, so the ratio is 1 and c = A, and GRPO's KL."""
        p, settings = self.p, dynamics.ppo_settings(self.p, self.training)
        log = self._log_at(step, settings.updates)
        settings = replace(settings, kl_coefficient=log["kl_coefficient"], micro_batch_size=p.measure_batch)
        rollout = collect(
            policy,
            values,
            self.tokenizer,
            self.pairs["prompt"][: len(self.pairs) // settings.group_size],
            dynamics.reference_of(policy, base_model(p)),
            self.reward,
            settings,
            [self.training.seed, step, 1],  # not the samples that training draws
            Accelerator(),
        )
        kl = kl_in_loss(rollout.log_probs, rollout.reference_log_probs, rollout.mask, settings)
        whole, of_rewards = (
            Weights.of_tokens(c, rollout.mask, progress, log["live"])
            for c in (rollout.advantages + kl, rollout.advantages)
        )
        parts = _parts(whole, self.training.rule(of_rewards) + kl)  # no rule touches the KL
        return Probe(rollout.batch, whole.c, parts, whole.weight[whole.held], len(whole.c))

    def _log_probs(self, policy: PreTrainedModel, rows: list[dict]) -> torch.Tensor:
        found = pair_log_probs(policy, rows, self.tokenizer.pad_token_id, self.p.measure_batch)
        return torch.stack([found.chosen, found.rejected]).float()

    def _tokens(self, probe: Probe, s: torch.Tensor) -> list[dict]:
        """The first units of the probe, token by token; a pair has two rows."""
        rows = range(min(self.p.shown, probe.n))
        rows = [i for unit in rows for i in range(unit, len(probe.c), probe.n)]
        shown = []
        for i in rows:
            mask = probe.batch["completion_mask"][i, 1:].bool()
            ids = probe.batch["input_ids"][i]
            prompt = ids[: int(mask.nonzero()[0]) + 1]
            shown.append(
                {
                    "prompt": self.tokenizer.decode(prompt, skip_special_tokens=True),
                    "tokens": self.tokenizer.convert_ids_to_tokens(ids[1:][mask]),
                    "c": probe.c[i][mask].tolist(),
                    "pull": (-probe.c[i] * s[i])[mask].tolist(),
                }
            )
        return shown

    def save(self, folder: Path) -> None:
        save_file({name: t.contiguous() for name, t in self.arrays.items()}, folder / "arrays.safetensors")
        (folder / "record.json").write_text(json.dumps(self.records))


def _parts(weights: Weights, trained: torch.Tensor) -> dict[str, torch.Tensor]:
    thirds = {name: weights.tertile(name) for name in ("bottom", "middle", "top")}
    masks = sign_components(weights.c) | thirds
    return {name: weights.c * mask for name, mask in masks.items()} | {"trained": trained}


@torch.no_grad()
def _in_chunks(model: PreTrainedModel, batch: Batch, size: int) -> torch.Tensor:
    rows = len(batch["input_ids"])
    return torch.cat([token_log_probs(model, rows_of(batch, slice(i, i + size))) for i in range(0, rows, size)])


def _both_sides(log_probs: PairLogProbs) -> torch.Tensor:
    return torch.cat([log_probs.chosen, log_probs.rejected])


def _contributions(probe: Probe, s: torch.Tensor) -> torch.Tensor:
    """(PARTS, n), in float64."""
    per_row = torch.stack([-(precise(probe.parts[k]) * precise(s)).sum(1) for k in PARTS])
    return per_row.view(len(PARTS), -1, probe.n).sum(1)


def load_measured(p: DynamicsSettings, training: Training) -> Measured:
    folder = measure(p, training)
    records, arrays = json.loads((folder / "record.json").read_text()), load_file(folder / "arrays.safetensors")

    def column(name: str) -> np.ndarray:
        return np.array([record.get(name, np.nan) for record in records], dtype=float)

    def kept(name: str) -> list[np.ndarray]:
        return [arrays[f"{i}.{name}"].double().numpy() for i in range(len(records)) if f"{i}.{name}" in arrays]

    return Measured(
        steps=column("step").astype(int),
        contributions=np.array(kept("contributions")),
        layers=[record["layers"] for record in records],
        cosine=column("cosine"),
        ceilings=np.array([record["ceilings"] for record in records]),
        weights=kept("weights"),
        total_weight=np.array([record["total_weight"] for record in records]),
        margins=np.array(kept("margins")) if training.from_pairs else None,
        nll=column("nll"),
        predicted=column("predicted"),
        changed=column("changed"),
        step_cosine=column("step_cosine"),
        tokens=[record["tokens"] for record in records],
        held_out=np.array(kept("held_out")),
    )
