"""Common mode at a few policies of one run, on samples of many samplers: the policy's own at other decodings, those of
earlier policies, and pairs of a world's generator."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from preflab import alignment
from preflab.common_mode import Split, contributions, cross_entropy_gradient, expected_samples, mean_size, parts_of
from preflab.decoding import Decoding, kl, next_tokens_of_all, pieces, said
from preflab.likelihood import collate_responses
from preflab.settings import Count, settings
from preflab.stages.answers import AnswersStage
from preflab.stages.drawn import Drawn, Earlier, Generator, PairsDrawer, SamplesDrawer, Source
from preflab.stages.snapshots import Snapshots
from preflab.stages.stage import Stage
from preflab.stages.training import Training, TrainingFromPairs
from preflab.training.rollout import Values


@settings
class Sampling:
    """Section `sampling`: how much is drawn of every sampler."""

    samples: Count = 64  # of PPO
    pairs: Count = 32  # of DPO: two samples each
    earlier: Count = 2  # earlier policies whose samples are measured, the first and the last among them


@dataclass(frozen=True)
class CommonMode(Stage):
    """`plan`: at which updates, and on whose samples. `finals`: D' by name; the first is measured on every source, the
    others only at the last of the updates, on those sources whose names are in `apart`."""

    training: Training
    snapshots: Snapshots
    finals: tuple[tuple[str, AnswersStage], ...]
    plan: tuple[tuple[int, tuple[Source, ...]], ...]
    apart: tuple[str, ...]
    n: int
    max_new_tokens: int
    nll: str
    batch: int

    def build(self, folder: Path) -> None:
        _ = self.snapshots.folder  # trains, and leaves the final policy that D' comes from
        meter = _Meter(self)
        self.snapshots.visit(meter)
        meter.save(folder)

    def load(self) -> list[Split]:
        folder = self.folder
        records, arrays = json.loads((folder / "record.json").read_text()), load_file(folder / "arrays.safetensors")
        return [
            Split(**{k: np.nan if v is None else v for k, v in record.items()}, contributions=arrays[str(i)].numpy())
            for i, record in enumerate(records)
        ]


class _Meter:
    """Called with the states of a run in order. It keeps the samples of those whose samples are measured later."""

    def __init__(self, stage: CommonMode):
        self.stage, training = stage, stage.training
        device, pad = training.base.load().device, training.base.tokenizer().pad_token_id
        self.finals = {
            name: [collate_responses(half, pad, device) for half in _halves(answers.load().final)]
            for name, answers in stage.finals
        }
        kind = PairsDrawer if isinstance(training, TrainingFromPairs) else SamplesDrawer
        self.drawer = kind(training, stage.n, stage.max_new_tokens, stage.batch)
        self.plan = dict(stage.plan)
        self.earlier = {s.step for sources in self.plan.values() for s in sources if isinstance(s, Earlier)}
        self.kept: dict[int, Drawn] = {}
        self.records: list[dict] = []
        self.arrays: dict[str, torch.Tensor] = {}

    def __call__(self, step: int, policy: PreTrainedModel, values: Values | None) -> None:
        if step in self.earlier:
            self.kept[step] = self.drawer.draw(policy, values, step, Decoding())
        if step not in self.plan:
            return
        parameters = alignment.parameters_of(policy)
        v = {name: self._gradients(policy, halves, parameters) for name, halves in self.finals.items()}
        for source in self.plan[step]:
            drawn = self._drawn(source, step, policy, values)
            self._measure(step, source, drawn, policy, parameters, v)

    def _drawn(self, source: Source, step: int, policy: PreTrainedModel, values: Values | None) -> Drawn:
        match source:
            case Earlier(earlier):
                return self.kept[earlier]
            case Generator(pairs):
                return self.drawer.of(pairs, policy.device)
        return self.drawer.draw(policy, values, step, source.decoding)

    def _gradients(self, policy: PreTrainedModel, halves: list[dict], parameters) -> list[alignment.Gradient]:
        """v of each half of D'."""
        size = self.stage.batch
        return [alignment.nll_gradient(policy, pieces(half, size), parameters, self.stage.nll) for half in halves]

    def _measure(self, step: int, source: Source, drawn: Drawn, policy: PreTrainedModel, parameters, v: dict) -> None:
        size, batch = self.stage.batch, drawn.batch
        mask = batch["completion_mask"][:, 1:]
        log_probs = next_tokens_of_all(policy, batch, size)
        now = said(log_probs, batch)
        c, sizes, factor = drawn.weigh(now)
        parts, m = parts_of(c, sizes, factor, mask), float(mean_size(sizes, mask))
        known, pull = drawn.log_q is not None, None
        if known:
            pull = cross_entropy_gradient(policy, batch, drawn.log_q, parameters, size)
        common = {
            "step": step,
            "source": str(source),
            "kl": float(kl(drawn.log_q, log_probs).mean()) if known else None,
            "surprise": float(-now.sum() / mask.sum()),
        }
        for name, halves in v.items():
            if name != self.stage.finals[0][0] and (str(source) not in self.stage.apart or step < max(self.plan)):
                continue
            s = [_token_alignment(policy, batch, half, size) for half in halves]
            expected = [expected_samples(m, half, pull, drawn.n) for half in halves] if known else None
            self.arrays[str(len(self.records))] = torch.stack([contributions(parts, half, drawn.n) for half in s])
            self.records.append(common | {"final": name, "expected": expected and float(np.mean(expected))})

    def save(self, folder: Path) -> None:
        save_file({name: t.cpu().contiguous() for name, t in self.arrays.items()}, folder / "arrays.safetensors")
        (folder / "record.json").write_text(json.dumps(self.records))


def _halves(final: list) -> tuple[list, list]:
    """Of equal size, so that their mean is the whole."""
    final = final[: len(final) // 2 * 2]
    return final[::2], final[1::2]


def _token_alignment(policy: PreTrainedModel, batch: dict, v: alignment.Gradient, size: int) -> torch.Tensor:
    return torch.cat([alignment.token_alignment(policy, part, v) for part in pieces(batch, size)])
