"""Registrations: what a rule can see, written down and committed before the seeds that decide are run.

A registration is a dated YAML file in `registered/`, one for each notebook that has one. It says of every claim what
would be true if the claim were wrong (null), how large an effect counts, and with which probability these seeds show it
(power). A run records the file's hash, and `git log` shows which was first.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from preflab.claims import WITHHELD, Claim
from preflab.judging import counted

FOLDER = Path(__file__).parent / "registered"


@dataclass(frozen=True)
class Registration:
    date: str
    profile: str
    seeds: tuple[int, ...]  # that decide
    tuning_seeds: tuple[int, ...]
    spread: dict[str, Any]  # that the power was simulated with; each module of claims says of what
    claims: dict[str, dict[str, Any]]  # id: if_wrong, effect (in words), power by verdict
    sha256: str

    def covers(self, profile: str, seeds: Sequence[int]) -> bool:
        """Whether a run is the one that was registered."""
        return profile == self.profile and tuple(seeds) == self.seeds

    def judged(
        self, claims: Sequence[Claim], profile: str, seeds: Sequence[int], on: Mapping[str, int] | None = None
    ) -> list[Claim]:
        """The claims with the power of their rules. If the run is not the registered one, they have none, and the
        verdict says on how few seeds it rests; or `on` how many of what else."""
        if not self.covers(profile, seeds):
            few = counted(on or {"seeds": len(seeds)})
            return [
                c if c.verdict.startswith(WITHHELD) else replace(c, verdict=f"{c.verdict} on {few}") for c in claims
            ]
        powers = {name: min(of["power"].values()) for name, of in self.claims.items()}
        return [replace(claim, power=powers.get(claim.id)) for claim in claims]

    def table(self) -> pd.DataFrame:
        """What was registered, a row for each claim."""
        rows = {
            name: {
                "if it is wrong": of["if_wrong"],
                "effect that counts": of["effect"]["words"],
                "power": ", ".join(f"{verdict} {power:.2f}" for verdict, power in of["power"].items()),
            }
            for name, of in self.claims.items()
        }
        return pd.DataFrame(rows).T


def registered(notebook: str) -> Registration:
    """The registration of a notebook."""
    content = (FOLDER / f"{notebook}.yaml").read_bytes()
    values = yaml.safe_load(content)
    return Registration(
        date=str(values["date"]),
        profile=values["profile"],
        seeds=tuple(values["seeds"]),
        tuning_seeds=tuple(values["tuning_seeds"]),
        spread=values["spread"],
        claims=values["claims"],
        sha256=hashlib.sha256(content).hexdigest(),
    )
