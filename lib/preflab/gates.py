"""Gates: what an experiment on G must be able to do before its seeds decide anything.

They are measured on other seeds than those that decide, and know nothing of a claim: no sign of a part, no win rate.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

COMMONEST = 0.2  # of all greedy responses: above, D' is a habit and not an answer
ENTROPY = 20.0  # nats a response of the SFT model: below, there is next to nothing to learn
HALFWAY = (0.25, 0.6)  # share of training at which half of the drop of NLL(D') is done
PRECISE, AT = 0.25, 10 / 16  # standard error of G over its root mean square; at so many of the checkpoints
KL = 0.15  # nats a token at the end: above, the run has left its language
WELL_FORMED = 0.95  # of sampled responses at the end
BEHIND = 0.03  # of accuracy on held-out pairs: reward model against what DPO learned from the same pairs


@dataclass(frozen=True)
class Run:
    """What the gates look at, of one run."""

    progress: np.ndarray  # (steps,) share of training
    nll: np.ndarray  # (steps,) of D'
    g: np.ndarray  # (steps,)
    noise: np.ndarray  # (steps,) standard error of g
    greedy: Sequence[str]  # D'
    kl: float  # nats a token at the end
    well_formed: float | None  # share of sampled responses at the end; None where nothing can tell


@dataclass(frozen=True)
class Gate:
    """One gate, at the worst of its runs."""

    name: str
    measured: float
    needed: str
    met: bool


def gates(runs: Sequence[Run], entropy: float, reward: float | None, implicit: float | None) -> list[Gate]:
    """All gates of some runs.

    `entropy` is the SFT model's, in nats a response. `reward` and `implicit` are accuracies on held-out pairs, of the
    reward model and of DPO's margins; None where there is no reward model.
    """
    half = [halfway(run.progress, run.nll) for run in runs]
    outside = max(half, key=lambda x: max(HALFWAY[0] - x, x - HALFWAY[1]))
    found = [
        _most("commonest greedy response", max(map(commonest, (run.greedy for run in runs))), COMMONEST),
        _least("entropy of the SFT model, nats a response", entropy, ENTROPY),
        Gate(
            "half of the drop of NLL(D')",
            outside,
            f"{HALFWAY[0]} to {HALFWAY[1]} of training",
            HALFWAY[0] <= outside <= HALFWAY[1],
        ),
        _least("checkpoints where G is precise", min(precise(run.g, run.noise) for run in runs), AT),
        _most("KL at the end, nats a token", max(run.kl for run in runs), KL),
    ]
    if spoken := [run.well_formed for run in runs if run.well_formed is not None]:
        found.append(_least("well-formed at the end", min(spoken), WELL_FORMED))
    if reward is not None and implicit is not None:
        found.append(_most("reward model behind DPO, accuracy", implicit - reward, BEHIND))
    return found


def table(found: Sequence[Gate]) -> pd.DataFrame:
    """Gates as a reader sees them: a row each."""
    rows = [[f"{gate.measured:.3g}", gate.needed, "yes" if gate.met else "NO"] for gate in found]
    return pd.DataFrame(rows, index=[gate.name for gate in found], columns=["measured", "needed", "met"])


def commonest(texts: Sequence[str]) -> float:
    """The share of the commonest text."""
    return max(texts.count(text) for text in set(texts)) / len(texts)


def halfway(progress: np.ndarray, nll: np.ndarray) -> float:
    """The share of training at which half of the drop of the NLL is done for good: between the last checkpoint before
    which less is done and the next, linearly. 1 where the NLL does not fall."""
    done = (nll[0] - nll) / (nll[0] - nll[-1]) if nll[0] > nll[-1] else np.zeros_like(nll)
    before = np.flatnonzero(done < 0.5)
    i = int(before[-1]) if len(before) else 0
    if i == len(done) - 1:
        return 1.0
    share = (0.5 - done[i]) / (done[i + 1] - done[i])
    return float(progress[i] + share * (progress[i + 1] - progress[i]))


def precise(g: np.ndarray, noise: np.ndarray) -> float:
    """The share of checkpoints at which the standard error of G is at most a quarter of G's root mean square."""
    return float(np.mean(noise <= PRECISE * np.sqrt(np.mean(g**2))))


def _most(name: str, measured: float, bound: float) -> Gate:
    return Gate(name, float(measured), f"at most {bound:g}", bool(measured <= bound))


def _least(name: str, measured: float, bound: float) -> Gate:
    return Gate(name, float(measured), f"at least {bound:g}", bool(measured >= bound))
