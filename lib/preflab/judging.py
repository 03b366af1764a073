"""Who answers better, prompt by prompt, and how answers vary."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit

from preflab.stages.drawn_answers import Drawn
from preflab.statistics import Interval


def chances(ours: np.ndarray, theirs: np.ndarray, temperature: float) -> np.ndarray:
    """How likely the judge is to label one of our responses as the better one, prompt by prompt:

        mean over i, j of sigma((u_i - u'_j) / T)

    `ours` and `theirs` hold scores of K responses a prompt, (..., K); returns (...,).
    """
    return expit((ours[..., :, None] - theirs[..., None, :]) / temperature).mean((-1, -2))


def at_equal_kl(own: "Path", rival: "Path") -> float:
    """The difference of mean scores, own less rival, at the largest KL that both runs reach, linear between states."""
    kl = min(own.kl.max(), rival.kl.max())
    one, other = (np.interp(kl, np.maximum.accumulate(path.kl), path.score) for path in (own, rival))
    return float(one - other)


def distinct(texts: list[str], n: int) -> float:
    """Share of different n-grams of words among all of them (distinct-n)."""
    grams = [tuple(words[i : i + n]) for words in map(str.split, texts) for i in range(len(words) - n + 1)]
    return len(set(grams)) / max(len(grams), 1)


def described(answers: Sequence[Drawn]) -> dict[str, float]:
    """How answers vary, the mean over runs: KL from the SFT model in nats a response, entropy in nats a token, the
    shares of different answers and of different pairs of words, and the length in tokens."""
    return {
        "KL": float(np.mean([a.kl for a in answers])),
        "entropy": float(np.mean([a.entropy for a in answers])),
        "unique": float(np.mean([len(set(a.texts)) / len(a.texts) for a in answers])),
        "distinct-2": float(np.mean([distinct(a.texts, 2) for a in answers])),
        "length": float(np.mean([len(response) for a in answers for _, response in a.samples])),
    }


@dataclass(frozen=True)
class Judged:
    """The answers of several runs to n held-out prompts, K each, and the judge's scores of them."""

    answers: list[Drawn]  # a run each
    scores: np.ndarray  # (runs, n, K)
    temperature: float  # of the judge's labels, in units of the score

    @property
    def score(self) -> float:
        """The mean score."""
        return self.scores.mean()

    def chances(self, rival: "Judged") -> np.ndarray:
        """Prompt by prompt against the rival's run with the same seed, or against its only run: (runs, n)."""
        return chances(self.scores, rival.scores, self.temperature)


@dataclass(frozen=True)
class Path:
    """Where one run passes in training: KL from the SFT model, nats a response, and mean score; (states,) each."""

    kl: np.ndarray
    score: np.ndarray


@dataclass(frozen=True)
class Place:
    """Where the candidates of one row ended, the chosen one first; each array is (candidates,)."""

    family: str  # dpo (learns from pairs) or ppo (from its samples)
    score: np.ndarray
    kl: np.ndarray
    diversity: np.ndarray


def as_table(
    rows: Mapping[str, Mapping[str, Any]], counts: Mapping[str, int], columns: Sequence[str] | None = None
) -> pd.DataFrame:
    """Rows, or some of their columns, as a reader sees them: three decimals, and nothing where nothing was measured.

    `counts` says what the numbers rest on, for example {"prompts": 128, "seeds": 2}. It stands in the table's corner.
    """
    shown = list(dict.fromkeys(name for row in rows.values() for name in row) if columns is None else columns)
    texts = [[_as_text(row.get(name)) for name in shown] for row in rows.values()]
    return pd.DataFrame(texts, list(rows), shown).rename_axis(columns=counted(counts))


def counted(counts: Mapping[str, int]) -> str:
    """Numbers with what they count, a plural: "128 prompts, 1 seed"."""
    return ", ".join(f"{n} {what if n != 1 else what.removesuffix('s')}" for what, n in counts.items())


def _as_text(value: Any) -> str:
    if isinstance(value, (str, int, Interval)):
        return str(value)
    return f"{value:.3f}" if value is not None and np.isfinite(value) else ""


def decided(intervals: Mapping[str, Interval]) -> list[str]:
    """The names of those intervals that leave out zero."""
    return [name for name, interval in intervals.items() if interval.low > 0 or interval.high < 0]
