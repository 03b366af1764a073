"""Answers for AlpacaEval, in its own format. AlpacaEval and its judge's account are not part of this project."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from preflab.stages.answers import Texts
from preflab.stages.base import Base
from preflab.stages.training import Training

NEW_TOKENS = 512  # as in App. B.3 of paper D
ANNOTATOR = "weighted_alpaca_eval_gpt4_turbo"  # AlpacaEval's default, as there


def export(
    base: Base, trainings: Mapping[str, Training], instructions: list[dict], folder: Path, batch: int
) -> list[str]:
    """NN_NAME/model_outputs.json below `folder`: greedy answers of each run's final policy, and of the SFT model, the
    baseline. Returns the commands that judge them, to be run in `folder`.

    `instructions` are rows with an `instruction`, whose other keys but `output` and `generator` are kept.
    """
    commands = []
    asked = tuple(row["instruction"] for row in instructions)
    for number, (name, training) in enumerate({"SFT": None, **trainings}.items()):
        own = f"{number:02d}_" + re.sub(r"\W+", "_", name)  # no shell minds it, and no two are the same
        path = folder / own / "model_outputs.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        texts = Texts(base, training, asked, NEW_TOKENS, batch).load()
        rows = [r | {"output": t, "generator": name} for r, t in zip(instructions, texts, strict=True)]
        path.write_text(json.dumps(rows, indent=1))
        if training:
            outputs = f"--model_outputs {own}/model_outputs.json --reference_outputs 00_SFT/model_outputs.json"
            commands.append(f"alpaca_eval {outputs} --annotators_config {ANNOTATOR} --output_path {own}")
    return commands
