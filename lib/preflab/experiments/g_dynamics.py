"""02_g_dynamics: G along training, and the gates that it must pass before its seeds decide."""

from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np
from pydantic import model_validator

from preflab import gates, rewards
from preflab.errors import BadInput
from preflab.experiments.dynamics import Dynamics, Planned
from preflab.gates import Gate
from preflab.measured import Measured, ordered
from preflab.settings import Seed
from preflab.stages.alignment import Measurement
from preflab.stages.answers import Answers
from preflab.stages.stage import Job
from preflab.statistics import Interval, mean_interval


class GDynamics(Dynamics):
    """02_g_dynamics. On `tuning_seeds` the experiment was tuned; they decide nothing. If a gate is not met on them, the
    seeds that decide are not run, unless `beyond_gates` says so."""

    tuning_seeds: list[Seed]
    beyond_gates: bool
    measurement: Measurement = Measurement(checkpoints=9, probe=96, finals=96)

    @model_validator(mode="after")
    def _seeds_apart(self) -> Self:
        if both := sorted(set(self.seeds) & set(self.tuning_seeds)):
            raise ValueError(f"tuning_seeds={self.tuning_seeds}: expected none of the seeds that decide, {both}")
        return self

    def jobs_on(self, seeds: Sequence[int]) -> list[Job]:
        """What has to be trained and measured of these seeds."""
        return [Job(str(run), self.asked_of(run)) for run in self.planned_on(seeds)]

    def gates_on(self, seeds: Sequence[int]) -> list[Gate]:
        """The gates, at the worst of the runs of these seeds."""
        runs = self.planned_on(seeds)
        along = [self.alignment(run.training).load() for run in runs]
        gated = [self._gated(run, x) for run, x in zip(runs, along, strict=True)]
        before = self.answers_stage(None).load()
        reward = implicit = None
        if self.reward.kind in ("model", "implicit"):
            margins = self.reward_stage().margins(self.pairs.test_pairs)
            reward = float((margins > 0).mean())
            from_pairs = [x for run, x in zip(runs, along, strict=True) if run.row.from_pairs]
            implicit = float(np.mean([order_learnt(x) for x in from_pairs]))
        return gates.gates(gated, float(-before.log_probs.mean()), reward, implicit)

    def _gated(self, run: Planned, found: Measured) -> gates.Run:
        answers = self.answers_stage(run.training).load()
        tokens = np.mean([len(response) for _, response in answers.sampled])
        return gates.Run(
            found.progress,
            found.nll,
            found.g[:, 0],
            found.noise()[:, 0],
            answers.final_texts,
            float(answers.kl / tokens),
            self.speech(answers).get("well-formed"),
        )

    def check_gates(self, found: Sequence[Gate]) -> None:
        """Raises BadInput if a gate is not met on the tuning seeds, and nothing allows to go beyond it."""
        shut = [f"{gate.name} {gate.measured:.3g}, needed {gate.needed}" for gate in found if not gate.met]
        if shut and not self.beyond_gates:
            raise BadInput(f"gates: {'; '.join(shut)}; beyond_gates: true runs the seeds all the same")

    def by_method(self) -> dict[str, list[Planned]]:
        """The runs of DPO and those of PPO, in the order of seeds."""
        runs = self.planned()
        return {method: [run for run in runs if run.row.method == method] for method in ("dpo", "ppo")}

    def speech(self, answers: Answers) -> dict[str, float]:
        """How well a policy speaks: its sampled answers, and its D'. What needs the oracle is left out without one."""
        prompts, eos = self.prompts().messages(), self.base_model.tokenizer().eos_token_id
        found = {"distinct": len(set(answers.sampled_texts)) / len(answers.sampled_texts)}
        if self.utility:
            language = self.pairs.world.language.name
            found |= {
                "utility": float(np.mean(rewards.utilities(self.utility, prompts, answers.sampled_texts))),
                "well-formed": rewards.well_formed(language, prompts, answers.sampled_texts),
                "D' well-formed": rewards.well_formed(language, prompts, answers.final_texts),
            }
        return found | {"D' ended": float(np.mean([ids[-1:] == [eos] for _, ids in answers.final]))}

    def gain(self, before: Answers, after: Answers) -> Interval:
        """What the judge's score of sampled answers gains, prompt by prompt; the interval is over prompts."""
        prompts = self.prompts().messages()
        one, other = (self.scored(prompts, a.sampled, a.sampled_texts) for a in (before, after))
        return mean_interval((other - one)[None])


LOGGED = {
    "dpo": {"loss": "loss", "accuracy": "accuracy"},
    "ppo": {
        "reward": "score",
        "oracle's utility": "oracle",
        "KL, nats a response": "kl",
        "entropy, nats a token": "entropy",
        "share of clipped tokens": "clip_share",
        "values' explained variance": "explained_variance",
    },
}  # method: title: name in the log


def logged(histories: Mapping[str, Sequence[list[dict]]], oracle: bool) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What training logged, by title: share of training (entries,), and the curves (runs, entries).

    `histories` holds the logs of each method's runs. Without an oracle nothing can be said of its utility.
    """
    panels = {}
    for method, titles in LOGGED.items():
        for title, key in titles.items():
            curves = np.array([[entry[key] for entry in history] for history in histories[method]])
            if oracle or key != "oracle":
                panels[f"{method.upper()}: {title}"] = np.linspace(0, 1, curves.shape[1]), curves
    return panels


def order_learnt(found: Measured) -> float:
    """Share of the held-out pairs whose chosen response has gained more than the rejected one over a whole run."""
    return ordered(found.held_out[-1] - found.held_out[0])
