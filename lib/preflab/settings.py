"""What settings are made of: frozen, checked dataclasses, and the ranges that their fields share."""

from dataclasses import MISSING, field
from typing import Annotated, Any

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
settings = dataclass(frozen=True, config=STRICT)  # a decorator: names, types and ranges are checked when one is made

INCIDENTAL = "incidental"  # a field's metadata: it decides how, not what, and is no part of a stage's identity

LARGEST_SEED = 2**31 - 1
LARGEST_COUNT = 10**7  # what is larger is a slip of the hand, and would fill the memory first

Count = Annotated[int, Field(ge=1, le=LARGEST_COUNT)]
CountOrNone = Annotated[int, Field(ge=0, le=LARGEST_COUNT)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Proportion = Annotated[float, Field(ge=0, le=1)]
Between = Annotated[float, Field(gt=0, lt=1)]
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]
SOURCE = r"^(world|hub|files):."
Source = Annotated[str, Field(pattern=SOURCE)]
TextSource = Annotated[str, Field(pattern=r"^(hub|files):.")]  # of texts without a preference; no world has any


def incidental(default: Any = MISSING) -> Any:
    """A field that decides nothing about the numbers, such as how often a checkpoint is written."""
    return field(default=default, metadata={INCIDENTAL: True})
