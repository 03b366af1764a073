"""Who answers better, prompt by prompt, and how answers vary. Ties count half."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from preflab.stages.answers import Answers
from preflab.statistics import Interval


def wins(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """1 where our response scores higher, 1/2 where both score the same, else 0; the arrays' shape."""
    return np.where(np.isclose(ours, theirs), 0.5, (ours > theirs).astype(float))


def distinct(texts: list[str], n: int) -> float:
    """Share of different n-grams of words among all of them (distinct-n)."""
    grams = [tuple(words[i : i + n]) for words in map(str.split, texts) for i in range(len(words) - n + 1)]
    return len(set(grams)) / max(len(grams), 1)


def described(answers: Sequence[Answers]) -> dict[str, float]:
    """How sampled answers vary, the mean over runs: KL from the SFT model in nats a response, entropy in nats a token,
    the shares of different answers and of different pairs of words, and the length in tokens."""
    return {
        "KL": float(np.mean([a.kl for a in answers])),
        "entropy": float(np.mean([a.entropy for a in answers])),
        "unique": float(np.mean([len(set(a.sampled_texts)) / len(a.sampled_texts) for a in answers])),
        "distinct-2": float(np.mean([distinct(a.sampled_texts, 2) for a in answers])),
        "length": float(np.mean([len(response) for a in answers for _, response in a.sampled])),
    }


@dataclass(frozen=True)
class Judged:
    """The answers of several runs to n held-out prompts, and the judge's scores of them."""

    answers: list[Answers]  # a run each
    greedy: np.ndarray  # (runs, n) scores of the greedy answers
    sampled: np.ndarray  # (runs, n) scores of the sampled answers

    @property
    def score(self) -> float:
        """The mean score of sampled answers."""
        return self.sampled.mean()

    def wins(self, rival: "Judged", greedy: bool = False) -> np.ndarray:
        """Prompt by prompt against the rival's run with the same seed, or against its only run: (runs, n)."""
        return wins(self.greedy, rival.greedy) if greedy else wins(self.sampled, rival.sampled)


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
