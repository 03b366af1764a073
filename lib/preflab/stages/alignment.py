"""G along a training run: at every snapshot, of every component, with its noise, by layer, by token, under Adam.

At a snapshot theta_t, with v = grad of the NLL of D' and c of the run's own method on a probe:

    contribution of pair or sample i to component k:   - sum_{t in k} c[i,t] * s[i,t]
    G(k) = mean of the contributions over the probe

Both the probe (n pairs or samples) and D' are cut in halves; the four corners of a measurement tell its noise.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from preflab import alignment
from preflab.generation import Sample
from preflab.hardware import precise
from preflab.layout import Batch
from preflab.likelihood import collate_responses, pair_log_probs, token_log_probs
from preflab.measured import PARTS, SIGNS, Measured
from preflab.settings import Count, NotNegative, incidental, settings
from preflab.stages.answers import AnswersStage
from preflab.stages.probe import PairsProbe, Probe, SamplesProbe
from preflab.stages.reference import SCORING_BATCH, ReferenceLogProbs
from preflab.stages.snapshots import Snapshots
from preflab.stages.stage import Stage
from preflab.stages.training import Training
from preflab.training.rollout import Values, rows_of
from preflab.weightings import sign_components

if TYPE_CHECKING:
    from preflab.stages.data import Pairs


@settings
class Measurement:
    """Section `measurement`: when and on what G is measured."""

    checkpoints: Annotated[Count, Field(ge=4)] = 16  # at most, evenly in the logarithm of updates, or of iterations
    probe: Annotated[Count, Field(ge=6)] = 128  # training pairs, or fresh samples, that G is measured on
    finals: Annotated[Count, Field(ge=2)] = 128  # held-out prompts whose responses by the final policy are D'
    final_temperature: NotNegative = 0.0  # decoding of D': 0 is greedy; choice, not stated
    nll: Literal["sum", "mean"] = "sum"  # over a response's tokens: the sum, as the paper's formula has it, or the mean
    batch: Count = 64  # sequences a pass
    shown: Count = 3  # pairs and samples that are kept token by token
    detail: bool = True  # also layers, cosines, the optimiser's real steps, and inner epochs (of samples)
    snapshots: Literal["keep", "replay"] = incidental("keep")  # replay: train again instead of keeping weights


@dataclass(frozen=True)
class Alignment(Stage):
    """`steps`: the updates after which G is measured, the last one the end of training. `answers` are D'.

    Beside G it keeps the log-probs of the `held_out` pairs."""

    training: Training
    answers: AnswersStage
    held_out: "Pairs"
    steps: tuple[int, ...]
    probe: PairsProbe | SamplesProbe
    nll: str
    batch: int
    shown: int
    detail: bool
    replay: bool = incidental(False)

    @property
    def inner_steps(self) -> dict[int, int]:
        """Steps at which a later inner epoch begins on the samples of a measured step: {inner step: measured step}."""
        measured = self.steps[:-1] if self.detail else ()
        return {inner: step for step in measured for inner in self.training.inner_epochs(step)}

    @property
    def snapshots(self) -> Snapshots:
        """The measured steps; in detail also the update after each, and the inner epochs."""
        after = [step + 1 for step in self.steps[:-1]] if self.detail else []
        return Snapshots(self.training, tuple(sorted({*self.steps, *after, *self.inner_steps})))

    def build(self, folder: Path) -> None:
        if self.replay:
            meter = _Meter(self)
            with self.training.run(meter):
                pass
        else:
            snapshots = self.snapshots
            _ = snapshots.folder  # trains, and leaves the final policy that D' comes from
            meter = _Meter(self)
            snapshots.visit(meter)
        meter.save(folder)

    def load(self) -> Measured:
        folder = self.folder
        return _measured(json.loads((folder / "record.json").read_text()), load_file(folder / "arrays.safetensors"))


@dataclass(frozen=True)
class Learnt(Stage):
    """Change of the log-probs of *all* of a run's training pairs since the SFT model, at its end."""

    training: Training

    def build(self, folder: Path) -> None:
        base, pairs = self.training.base, self.training.pairs
        before = ReferenceLogProbs(base, pairs).load()
        with self.training.final_policy() as policy:
            after = pair_log_probs(policy, pairs.encoded(base), base.tokenizer().pad_token_id, SCORING_BATCH)
        change = torch.stack([after.chosen - before.chosen, after.rejected - before.rejected])
        save_file({"change": change}, folder / "change.safetensors")

    def load(self) -> np.ndarray:
        """(2 sides, n)."""
        return load_file(self.folder / "change.safetensors")["change"].numpy()


class _Meter:
    """Called with the states of a run in order.

    It measures G at the steps that are due, at the step after each what the optimiser's real update has done, and, when
    a later inner epoch begins, G on the samples of the step that was due."""

    def __init__(self, stage: Alignment):
        self.stage, training = stage, stage.training
        base = training.base
        self.tokenizer = base.tokenizer()
        final = stage.answers.load().final
        final = final[: len(final) // 2 * 2]  # halves of equal size, whose mean is the whole
        self.finals = [self._batches(half, base.load().device) for half in (final[::2], final[1::2])]
        self.look = stage.probe.prepared(training, stage.batch)
        self.test_rows = stage.held_out.encoded(base)
        self.history = training.load()
        self.records: list[dict] = []
        self.arrays: dict[str, torch.Tensor] = {}
        self.before: dict | None = None
        self.probe: Probe | None = None

    def _batches(self, samples: list[Sample], device: torch.device) -> list[Batch]:
        chunks = [samples[i : i + self.stage.batch] for i in range(0, len(samples), self.stage.batch)]
        return [collate_responses(chunk, self.tokenizer.pad_token_id, device) for chunk in chunks]

    def __call__(self, step: int, policy: PreTrainedModel, values: Values | None) -> None:
        parameters = alignment.parameters_of(policy)
        training = policy.training
        policy.eval()
        if self.before is not None and step == self.before["step"] + 1:
            self._after_update(policy, parameters)
        if step in self.stage.inner_steps:
            self._measure_inner(policy, values, parameters)
        if step in self.stage.steps:
            self._measure(step, policy, values, parameters)
        policy.train(training)

    def _measure(self, step: int, policy: PreTrainedModel, values: Values | None, parameters) -> None:
        progress = min(step / self.stage.steps[-1], 1 - 1e-9)
        probe = self.probe = self.look(step, policy, values, progress, self._log_at(step))
        size = self.stage.batch
        halves = self._gradients(policy, parameters)
        v = _mean(*halves)
        s = [
            torch.cat([alignment.token_alignment(policy, batch, half) for batch, _ in probe.pieces(size)])
            for half in halves
        ]
        number = len(self.records)
        self.arrays |= {
            f"{number}.contributions": torch.stack([probe.contributions(half) for half in s]).float().cpu(),
            f"{number}.weights": probe.weight.float().cpu(),
            f"{number}.held_out": self._held_out(policy),
        }
        if probe.margins is not None:
            self.arrays[f"{number}.margins"] = probe.margins.float().cpu()
        self.records.append(
            {
                "step": step,
                "total_weight": [float(probe.parts[k].abs().sum()) / probe.n for k in PARTS],
                "tokens": self._tokens(probe, (s[0] + s[1]) / 2),
                "inner": [],
                "nll": self._nll(policy),
            }
        )
        if self.stage.detail:
            self._measure_detail(step, policy, parameters, halves, v)

    def _measure_detail(self, step: int, policy: PreTrainedModel, parameters, halves, v: alignment.Gradient) -> None:
        """Layers and cosines; and what the optimiser's next step will be compared with."""
        gradient, by_half = _loss_gradients(self.probe, policy, parameters, self.stage.batch)
        self.records[-1] |= {
            "layers": _layers(self.probe, policy, parameters, self.stage.batch, gradient, v),
            "cosine": alignment.cosine(v, gradient),
            "ceilings": [alignment.cosine(*halves), alignment.cosine(*by_half)],
        }
        here = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        nll = self.records[-1]["nll"]
        self.before = {"step": step, "v": v, "gradient": gradient, "parameters": here, "nll": nll}

    def _gradients(self, policy: PreTrainedModel, parameters) -> list[alignment.Gradient]:
        """v of each half of D'."""
        return [alignment.nll_gradient(policy, batches, parameters, self.stage.nll) for batches in self.finals]

    def _nll(self, policy: PreTrainedModel) -> float:
        return alignment.mean_nll(policy, [b for half in self.finals for b in half], self.stage.nll)

    def _after_update(self, policy: PreTrainedModel, parameters) -> None:
        """The optimiser's own step: what v predicts of it and what it did to the NLL of D'."""
        before = self.before["parameters"]
        moved = {n: precise(parameter.detach()) - precise(before[n]) for n, parameter in parameters.items()}
        self.records[-1] |= {
            "predicted": alignment.dot(self.before["v"], moved),
            "changed": self._nll(policy) - self.before["nll"],
            "step_cosine": -alignment.cosine(moved, self.before["gradient"]),
        }
        self.before = None

    def _measure_inner(self, policy: PreTrainedModel, values: Values | None, parameters) -> None:
        """G on the samples of the last measured step, with the ratio and the clip of now."""
        rollout, method, size = self.probe.rollout, self.stage.training.method, self.stage.batch
        v = _mean(*self._gradients(policy, parameters))
        g = dict.fromkeys(SIGNS, 0.0)
        for rows in torch.arange(self.probe.n, device=policy.device).split(size):
            batch, mask = rows_of(rollout.batch, rows), rollout.mask[rows]
            with torch.no_grad():
                log_probs = token_log_probs(policy, batch)
            c, *_ = method.clipped_weighting(log_probs, rollout.log_probs[rows], rollout.advantages[rows], mask)
            c = c + method.kl_in_loss(log_probs, rollout.reference_log_probs[rows], mask)
            s = alignment.token_alignment(policy, batch, v)
            found = alignment.alignment(c, s, sign_components(c), self.probe.n)
            g = {part: g[part] + found[part] for part in SIGNS}
        self.records[-1]["inner"].append([g[part] for part in SIGNS])

    def _log_at(self, step: int) -> dict:
        """The log of the update (from pairs) or iteration (from samples) that begins or goes on after `step`."""
        return self.history[min(self.stage.training.logged_at(step), len(self.history) - 1)]

    def _held_out(self, policy: PreTrainedModel) -> torch.Tensor:
        found = pair_log_probs(policy, self.test_rows, self.tokenizer.pad_token_id, self.stage.batch)
        return torch.stack([found.chosen, found.rejected]).float()

    def _tokens(self, probe: Probe, s: torch.Tensor) -> list[dict]:
        """The first units of the probe, token by token; a pair has two rows."""
        units = range(min(self.stage.shown, probe.n))
        shown = []
        for i in (row for unit in units for row in range(unit, len(probe.c), probe.n)):
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


def _mean(a: alignment.Gradient, b: alignment.Gradient) -> alignment.Gradient:
    return {name: (a[name] + b[name]) / 2 for name in a}


def _loss_gradients(probe: Probe, policy: PreTrainedModel, parameters, size: int):
    """Gradient of the whole loss, and of each half of the probe."""
    by_half, shares = [], []
    for rows, n in (probe.half(0), probe.half(1)):
        by_half.append(alignment.loss_gradient(policy, probe.pieces(size, rows), parameters, n))
        shares.append(n / probe.n)
    return {name: shares[0] * by_half[0][name] + shares[1] * by_half[1][name] for name in parameters}, by_half


def _layers(probe: Probe, policy: PreTrainedModel, parameters, size: int, gradient, v) -> dict[str, dict[str, float]]:
    """G by place in the network, of the whole, positive and negative part."""
    up = (probe.c > 0).any(1)
    pieces = ((b, c.clamp(min=0)) for b, c in probe.pieces(size, up))
    positive = alignment.by_layer(alignment.loss_gradient(policy, pieces, parameters, probe.n), v)
    whole = alignment.by_layer(gradient, v)
    return {
        "whole": whole,
        "positive": positive,
        "negative": {place: whole[place] - positive[place] for place in whole},
    }


def _measured(records: list[dict], arrays: dict[str, torch.Tensor]) -> Measured:
    def column(name: str) -> np.ndarray:
        return np.array([record.get(name, np.nan) for record in records], dtype=float)

    def kept(name: str) -> list[np.ndarray]:
        return [arrays[f"{i}.{name}"].double().numpy() for i in range(len(records)) if f"{i}.{name}" in arrays]

    epochs = len(records[0]["inner"])
    nothing = [[np.nan] * len(SIGNS)] * epochs
    return Measured(
        steps=column("step").astype(int),
        contributions=np.array(kept("contributions")),
        layers=[record.get("layers", {}) for record in records],
        cosine=column("cosine"),
        ceilings=np.array([record.get("ceilings", [np.nan] * 2) for record in records]),
        weights=kept("weights"),
        total_weight=np.array([record["total_weight"] for record in records]),
        margins=np.array(kept("margins")) if kept("margins") else None,
        nll=column("nll"),
        predicted=column("predicted"),
        changed=column("changed"),
        step_cosine=column("step_cosine"),
        tokens=[record["tokens"] for record in records],
        held_out=np.array(kept("held_out")),
        inner=np.array([record["inner"] or nothing for record in records]).reshape(len(records), epochs, len(SIGNS)),
    )
