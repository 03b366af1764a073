"""The course of Stage 2: both objectives' gradients at chosen updates, and what they foretell of held-out pairs.

At a snapshot theta_k, with the mean loss L_s of a method on a set of pairs s (`SETS`):

    gradients    of the parts of every set: their inner products, place by place
    terms        grad L_s(theta_k) . (theta_{k+1} - theta_k), and the same with the gradient at theta_{k+1}
    path         forward-mode change of each held-out pair's log-probs from theta_k to theta_{k+1}, at the middle

In one shot from the end of Stage 1, theta_0: `start` goes where training ended, `gradient` goes along -grad L_second.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from preflab import geometry
from preflab.alignment import parameters_of
from preflab.forecast import along, pair_slopes, placed
from preflab.geometry import Labelled
from preflab.hardware import precise
from preflab.likelihood import PairLogProbs, pair_log_probs
from preflab.margins import policy_margin
from preflab.settings import Count, settings
from preflab.stages.reference import ReferenceLogProbs
from preflab.stages.snapshots import Snapshots
from preflab.stages.stage import Stage
from preflab.training.rollout import Values

SETS = (
    "first",
    "second",
    "shuffled",
    "held out",
)  # of pairs. Shuffled: those of `second`, over both labellings of each
UNSCALED = "along −g₂, without training"  # a forecast of directions alone
SINGLE = ("one batch of first", "one batch of second")  # of each part


@settings
class CourseSettings:
    """Section `course`: when and on what both gradients are measured."""

    points: Annotated[Count, Field(ge=3)] = 8  # at most, evenly in the logarithm of Stage 2's updates
    parts: Annotated[Count, Field(ge=4, multiple_of=2)] = 8  # that the pairs of an objective are cut in
    batch: Count = 64  # pairs a pass


@dataclass(frozen=True)
class Course:
    """What `GradientCourse` keeps of one run. T points, T - 1 segments between them, n held-out pairs."""

    steps: np.ndarray  # (T,) updates of Stage 2
    places: list[tuple[str, str]]  # layer and projection
    parts: int
    products: np.ndarray  # (T, places, vectors, vectors): the parts of SETS, then SINGLE
    losses: np.ndarray  # (T, SETS)
    terms: np.ndarray  # (T - 1, SETS, 2): of a segment, with the gradient at its beginning and at its end
    start_terms: np.ndarray  # (SETS,): with the gradient at the end of Stage 1, all the way
    held_out: list[PairLogProbs]  # at each point
    path: list[PairLogProbs]  # first-order change in each segment
    start: PairLogProbs  # first-order change from the end of Stage 1 to the end of Stage 2
    gradient: PairLogProbs  # derivative along -grad of the loss of `second`, at the end of Stage 1

    @cached_property
    def whole(self) -> np.ndarray:
        """Inner products over all parameters, (T, vectors, vectors)."""
        return self.products.sum(1)

    def at(self, name: str) -> slice:
        """Where the parts of a set, or single batches, stand."""
        return geometry.slices(SETS + SINGLE, self.parts)[name]

    def cosine(self, one: str = "first", other: str = "second") -> np.ndarray:
        """Disattenuated, at each point: (T,)."""
        return geometry.disattenuated(self.whole, self.at(one), self.at(other))

    def halves(self, one: str = "first", other: str = "second") -> np.ndarray:
        """Disattenuated, of the first and of the second half of the points, whose inner products are added up: (2,).

        A sum over points is steadier than a mean of ratios."""
        halves = [some.sum(0) for some in np.array_split(self.whole, 2)]
        return np.array([geometry.disattenuated(products, self.at(one), self.at(other)) for products in halves])

    def by_place(self) -> np.ndarray:
        """Disattenuated cosine of both objectives at each place, of inner products added up over points: (places,)."""
        return geometry.disattenuated(self.products.sum(0), self.at("first"), self.at("second"))

    def error(self, one: str = "first", other: str = "second") -> np.ndarray:
        """Standard error of `cosine` for other pairs: (T,)."""
        return geometry.jackknife_error(self.whole, self.at(one), self.at(other))

    def raw(self, one: str = "first", other: str = "second") -> np.ndarray:
        """Cosine of the full-data gradients as they stand: (T,)."""
        return geometry.raw_cosine(self.whole, self.at(one), self.at(other))

    def ceiling(self, name: str) -> np.ndarray:
        """Cosine of two halves of one set: (T,)."""
        return geometry.ceiling(self.whole, self.at(name))

    def single(self) -> np.ndarray:
        """Mean cosine of a batch of the first with a batch of the second objective: (T,)."""
        return geometry.single_cosine(self.whole, *(self.at(name) for name in SINGLE))

    def single_ceiling(self) -> np.ndarray:
        """Mean cosine of two batches of the first objective: (T,)."""
        return geometry.single_cosine(self.whole, self.at(SINGLE[0]), self.at(SINGLE[0]))

    @property
    def lost(self) -> float:
        """What Stage 2 added to the mean loss of the first objective's held-out pairs."""
        changes = self.losses[-1] - self.losses[0]
        return float(changes[SETS.index("held out")])

    @property
    def foretold(self) -> float:
        """What the gradient at the end of Stage 1 says of that: grad L . (theta_T - theta_0)."""
        return float(self.start_terms[SETS.index("held out")])

    @property
    def summed(self) -> float:
        """The same as the sum along the path, by the trapezoid rule."""
        return float(self.terms.mean(2).sum(0)[SETS.index("held out")])

    @property
    def margins(self) -> np.ndarray:
        """Policy margins of the held-out pairs at each point, nats per token: (T, n)."""
        return np.array([policy_margin(found) for found in self.held_out])

    @property
    def happened(self) -> np.ndarray:
        """What Stage 2 did to the policy margin of every held-out pair: (n,)."""
        return self.margins[-1] - self.margins[0]

    @property
    def forecasts(self) -> dict[str, np.ndarray]:
        """The same as it was forecast: (n,) each. The last has no scale of its own."""
        return {
            "along the path": np.sum([policy_margin(found) for found in self.path], 0),
            "in one shot, where training went": policy_margin(self.start),
            UNSCALED: policy_margin(self.gradient),
        }


@dataclass(frozen=True)
class GradientCourse(Stage):
    """`snapshots` are those of Stage 2. The other pairs, each with the base's log-probs: those that Stage 1 and Stage 2
    learnt from, and the held-out ones of the first objective."""

    snapshots: Snapshots
    first: ReferenceLogProbs
    second: ReferenceLogProbs
    held_out: ReferenceLogProbs
    parts: int
    batch: int

    def build(self, folder: Path) -> None:
        meter = _Meter(self)
        self.snapshots.visit(meter)
        meter.save(folder)

    def load(self) -> Course:
        folder = self.folder
        record = json.loads((folder / "record.json").read_text())
        arrays = load_file(folder / "arrays.safetensors")
        tokens = arrays["tokens"]

        def of(sides: torch.Tensor) -> PairLogProbs:
            return PairLogProbs(*sides, *tokens)

        numbers = {name: arrays[name].numpy() for name in ("products", "losses", "terms", "start_terms")}
        return Course(
            steps=np.array(record["steps"]),
            places=[tuple(place) for place in record["places"]],
            parts=self.parts,
            **numbers,
            held_out=[of(sides) for sides in arrays["held_out"]],
            path=[of(sides) for sides in arrays["path"]],
            start=of(arrays["start"]),
            gradient=of(arrays["gradient"]),
        )


class _Meter:
    """Called with the snapshots of Stage 2 in order."""

    def __init__(self, stage: GradientCourse):
        self.stage, training = stage, stage.snapshots.training
        base, self.loop = training.base, training.loop
        self.pad = base.tokenizer().pad_token_id

        def labelled(of: ReferenceLogProbs, shuffled: bool = False) -> Labelled:
            return Labelled(of.pairs.encoded(base), of.load(), training.method, self.pad, shuffled)

        second = labelled(stage.second), labelled(stage.second, shuffled=True)
        self.sets = dict(zip(SETS, (labelled(stage.first), *second, labelled(stage.held_out)), strict=True))
        self.steps: list[int] = []
        self.places: list[tuple[str, str]] = []
        self.kept: dict[str, list[torch.Tensor]] = {n: [] for n in ("products", "losses", "terms", "held_out", "path")}
        self.states: list[dict[str, torch.Tensor]] = []  # the first one and the latest
        self.gradients: list[torch.Tensor] = []  # of those, (SETS, parameters)
        self.tokens: torch.Tensor | None = None

    def __call__(self, step: int, policy: PreTrainedModel, values: Values | None) -> None:
        parameters = parameters_of(policy)
        where = geometry.places(parameters)
        self.places, (g, products, losses) = list(where), self._measured(policy, parameters, where)
        here = {name: p.detach().clone() for name, p in parameters.items()}
        found = pair_log_probs(policy, self._rows, self.pad, self.stage.batch)
        self.tokens = torch.stack([found.chosen_tokens, found.rejected_tokens])
        self._keep(products=products, losses=losses, held_out=_sides(found))
        if self.steps:
            moved = _flat(here) - _flat(self.states[-1])
            self._keep(
                terms=torch.stack([self.gradients[-1] @ moved, g @ moved], 1),
                path=_sides(self._along(policy, parameters, self.states[-1], here)),
            )
        self.steps.append(step)
        self.states, self.gradients = [*self.states[:1], here], [*self.gradients[:1], g]
        if step == self.stage.snapshots.steps[-1]:
            self._in_one_shot(policy, parameters)

    @property
    def _rows(self) -> list[dict]:
        return self.sets["held out"].rows

    def _keep(self, **found: torch.Tensor) -> None:
        for name, tensor in found.items():
            self.kept[name].append(tensor)

    def _measured(self, policy: PreTrainedModel, parameters, where) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Full-data gradients (SETS, parameters), inner products of parts and of single batches, and losses (SETS,)."""
        how = {"parts": self.stage.parts, "batch": self.loop.batch_size, "size": self.stage.batch}
        found = [geometry.part_gradients(pairs, policy, parameters, **how) for pairs in self.sets.values()]
        parts, single, losses = zip(*found, strict=True)
        products = geometry.gram(torch.cat([*parts, single[0], single[1]]), where)
        means = torch.stack([precise(some).mean(0) for some in parts])
        return means, products.cpu(), torch.tensor(losses, dtype=torch.float64)

    def _along(self, policy: PreTrainedModel, parameters, start, end, at: float = 0.5) -> PairLogProbs:
        return along(policy, parameters, self._rows, self.pad, self.stage.batch, start, end, at)

    def _in_one_shot(self, policy: PreTrainedModel, parameters) -> None:
        start, end = self.states[0], self.states[-1]
        self.start = _sides(self._along(policy, parameters, start, end, at=0.0))
        self.start_terms = self.gradients[0] @ (_flat(end) - _flat(start))
        downhill = -self.gradients[0][SETS.index("second")]
        pieces = downhill.split([p.numel() for p in parameters.values()])
        direction = {n: piece.view_as(p).to(p) for (n, p), piece in zip(parameters.items(), pieces, strict=True)}
        with placed(parameters, start):
            self.gradient = _sides(pair_slopes(policy, self._rows, self.pad, self.stage.batch, direction))

    def save(self, folder: Path) -> None:
        arrays = {name: torch.stack(some) for name, some in self.kept.items()}
        arrays |= {"start_terms": self.start_terms, "start": self.start, "gradient": self.gradient}
        arrays |= {"tokens": self.tokens}
        save_file({name: t.cpu().contiguous() for name, t in arrays.items()}, folder / "arrays.safetensors")
        (folder / "record.json").write_text(json.dumps({"steps": self.steps, "places": self.places}))


def _flat(weights: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([precise(t).flatten() for t in weights.values()])


def _sides(found: PairLogProbs) -> torch.Tensor:
    """(2, n): chosen above rejected."""
    return torch.stack([found.chosen, found.rejected])
