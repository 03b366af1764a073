"""Win rates: who answers better, prompt by prompt. Ties count half."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from preflab import dynamics, rewards, runs
from preflab.bases import base_tokenizer
from preflab.cache import digest
from preflab.dynamics import Answers, Training
from preflab.generation import generate
from preflab.parameters import DynamicsSettings

ALPACA_TOKENS = 512  # new ones, as in App. B.3 of paper D
ANNOTATOR = "weighted_alpaca_eval_gpt4_turbo"  # AlpacaEval's default, as there


def judged(p: DynamicsSettings, answers: Answers, greedy: bool, which: range | None = None) -> np.ndarray:
    """The judge's score of each response to the held-out prompts, (prompts,): the oracle's utility in a world,
    else the reward model's score, which is no independent judge of what was trained on it."""
    prompts = dynamics.held_out_prompts(p, which)
    if spec := dynamics.objective_of(p):
        return rewards.utilities(spec, prompts, answers.final_texts if greedy else answers.sampled_texts)
    scores = dynamics.reward_of(p)(prompts, answers.final if greedy else answers.sampled)
    return scores.to(torch.float64).numpy()


def wins(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """1 where our response scores higher, 1/2 where both score the same, else 0; the arrays' shape."""
    return np.where(np.isclose(ours, theirs), 0.5, (ours > theirs).astype(float))


def distinct(texts: list[str], n: int) -> float:
    """Share of different n-grams of words among all of them (distinct-n)."""
    grams = [tuple(words[i : i + n]) for words in map(str.split, texts) for i in range(len(words) - n + 1)]
    return len(set(grams)) / max(len(grams), 1)


def described(answers: Sequence[Answers]) -> dict[str, float]:
    """KL to the SFT model, nats a response; entropy, nats a token; diversity and length, tokens a response: of sampled
    answers, the mean over runs."""
    return {
        "KL": float(np.mean([a.kl for a in answers])),
        "entropy": float(np.mean([a.entropy for a in answers])),
        "unique": float(np.mean([len(set(a.sampled_texts)) / len(a.sampled_texts) for a in answers])),
        "distinct-2": float(np.mean([distinct(a.sampled_texts, 2) for a in answers])),
        "length": float(np.mean([len(response) for a in answers for _, response in a.sampled])),
    }


# --- AlpacaEval ---------------------------------------------------------------------------------


def export_for_alpaca_eval(
    p: DynamicsSettings, trainings: Mapping[str, Training], instructions: list[dict], folder: Path
) -> list[str]:
    """NN_NAME/model_outputs.json below `folder`: greedy answers of each run's final policy, and of the SFT model, the
    baseline, in AlpacaEval's format. Returns the commands that judge them, to be run in `folder`.

    `instructions` are rows with an `instruction`, whose other keys but `output` and `generator` are kept. AlpacaEval
    and its judge's account are not part of this project.
    """
    commands = []
    for number, (name, training) in enumerate({"SFT": None, **trainings}.items()):
        own = f"{number:02d}_" + re.sub(r"\W+", "_", name)  # no shell minds it, and no two are the same
        path = folder / own / "model_outputs.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(_outputs(p, training, instructions, name), indent=1))
        if training:
            outputs = f"--model_outputs {own}/model_outputs.json --reference_outputs 00_SFT/model_outputs.json"
            commands.append(f"alpaca_eval {outputs} --annotators_config {ANNOTATOR} --output_path {own}")
    return commands


def _outputs(p: DynamicsSettings, training: Training | None, instructions: list[dict], generator: str) -> list[dict]:
    asked = [row["instruction"] for row in instructions]
    key = {"answers": dynamics.answers_key(p, training), "asked": digest(asked), "tokens": ALPACA_TOKENS}
    entry = runs.cache().entry("alpaca", key, lambda folder: _answer(p, training, asked, folder))
    outputs = json.loads((entry / "outputs.json").read_text())
    return [row | {"output": output, "generator": generator} for row, output in zip(instructions, outputs, strict=True)]


def _answer(p: DynamicsSettings, training: Training | None, asked: list[str], folder: Path) -> None:
    prompts = [[{"role": "user", "content": text}] for text in asked]
    with dynamics.final_model(p, training) as model:
        outputs = generate(model, base_tokenizer(p), prompts, max_new_tokens=ALPACA_TOKENS, batch_size=p.measure_batch)
    (folder / "outputs.json").write_text(json.dumps(outputs))
