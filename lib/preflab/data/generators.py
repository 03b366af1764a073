"""From rows to pairs: one generator for each schema of preference data.

A generator takes (where, row) tuples and the objective. For every candidate it yields a `Pair`, or a string that says
why the candidate is of no use. So everything that is lost can be counted in one place.
"""

import re
from collections.abc import Iterator
from itertools import combinations
from typing import NamedTuple

from preflab.data.values import Turns, number_of, rating_of, turns_of, value_of
from preflab.errors import BadInput

Rows = Iterator[tuple[str, dict]]  # ("train.jsonl: row 1", {column: value}), ...


class Pair(NamedTuple):
    """One preference. The prompt ends with a user turn; the replies are stripped texts that differ.

    `first`: whether the chosen reply stood first in the source; None if the source has no order of replies.
    `conflict`: whether another label of the same row prefers the other reply (PKU-SafeRLHF only).
    """

    prompt: Turns
    chosen: str
    rejected: str
    first: bool | None = None
    conflict: bool = False


def hh_pairs(rows: Rows, objective: str) -> Iterator[Pair | str]:
    """Anthropic HH-RLHF (arXiv 2204.05862): two whole dialogues that should differ in the last reply only."""
    for where, row in _of_objective(rows, objective):
        prompt, _, chosen = value_of(row, "chosen", str, where).rpartition("\n\nAssistant:")
        other, _, rejected = value_of(row, "rejected", str, where).rpartition("\n\nAssistant:")
        before, *turns = re.split(r"\n\n(Human|Assistant):", prompt)
        if not prompt or not other or before.strip() or "\n\nHuman:" in chosen + rejected:
            yield "malformed dialogue"
        elif prompt != other:
            yield "prompts differ"
        else:
            roles = ("user" if speaker == "Human" else "assistant" for speaker in turns[::2])
            yield _pair(tuple(zip(roles, turns[1::2], strict=True)), chosen, rejected)


def helpsteer_pairs(rows: Rows, objective: str) -> Iterator[Pair | str]:
    """HelpSteer2 (arXiv 2406.08673): two consecutive rows answer one prompt; each attribute is rated 0 to 4."""
    waiting = None
    for where, row in rows:
        prompt = value_of(row, "prompt", str, where)
        reply = value_of(row, "response", str, where), rating_of(row, objective, (0, 4), where)
        if waiting and waiting[0] == prompt:
            yield from _ranked(_helpsteer_turns(prompt), [waiting[1], reply])
            waiting = None
        else:
            if waiting:
                yield "prompt with one response"
            waiting = prompt, reply
    if waiting:
        yield "prompt with one response"


def pku_pairs(rows: Rows, objective: str) -> Iterator[Pair | str]:
    """PKU-SafeRLHF (arXiv 2406.15513): two responses, the number of the better and the number of the safer one.

    `safer_response_id` is also used if both responses are safe or both are unsafe, because every row has it.
    """
    for where, row in rows:
        for key in ("better_response_id", "safer_response_id"):
            if row.get(key) not in (0, 1):
                raise BadInput(f"{where}: key {key!r} is {row.get(key)!r:.20}; expected 0 or 1")
        chosen = int(row[f"{objective}_response_id"])
        yield _pair(
            (("user", value_of(row, "prompt", str, where)),),
            value_of(row, f"response_{chosen}", str, where),
            value_of(row, f"response_{1 - chosen}", str, where),
            first=chosen == 0,
            conflict=row["better_response_id"] != row["safer_response_id"],
        )


def ultrafeedback_pairs(rows: Rows, objective: str) -> Iterator[Pair | str]:
    """UltraFeedback (arXiv 2310.01377): up to four completions; aspects are rated as text, or "N/A".

    All six combinations are candidates, and those of different rating become pairs. This uses more of the signal
    than the best against the worst; the price is several pairs for one prompt. Prompts of TruthfulQA are left out, as
    in the recipe of Zephyr (arXiv 2310.16944), because TruthfulQA is a benchmark. Aspects are rated 1 to 5; up to 10
    is accepted for files that use the scale of `overall_score`.
    """
    for where, row in rows:
        if row.get("source") == "truthful_qa":
            yield "source is truthful_qa"
            continue
        replies = []
        for k, completion in enumerate(value_of(row, "completions", list, where)):
            here = f"{where}, completion {k}"
            annotations = value_of(completion, "annotations", dict, here)
            annotation = value_of(annotations, objective, dict, here) or {"Rating": None}
            rating = rating_of(annotation, "Rating", (1, 10), f"{here}, {objective}")
            replies.append((value_of(completion, "response", str, here), rating))
        yield from _ranked((("user", value_of(row, "instruction", str, where)),), replies)


def unieval_pairs(rows: Rows, objective: str) -> Iterator[Pair | str]:
    """UniEval's topical_chat (arXiv 2210.07197): several systems answer one dialogue, given a fact to talk about.

    The rows of one (fact, dialogue) need not be adjacent. All combinations of its answers are candidates.
    """
    groups: dict[tuple[str, str], list] = {}
    for where, row in rows:
        key = value_of(row, "context", str, where), value_of(row, "source", str, where)
        rating = rating_of(value_of(row, "scores", dict, where), objective, (0, 5), where)
        groups.setdefault(key, []).append((value_of(row, "system_output", str, where), rating))
    for (fact, dialogue), replies in groups.items():
        yield from _ranked((("user", f"{fact.strip()}\n\n{dialogue.strip()}"),), replies)


def trl_pairs(rows: Rows, objective: str) -> Iterator[Pair | str]:
    """The preference formats of TRL: text or messages, with the prompt in its own column or repeated in the replies."""
    for where, row in _of_objective(rows, objective):
        chosen = turns_of(row, "chosen", "assistant", where)
        rejected = turns_of(row, "rejected", "assistant", where)
        implicit = "prompt" not in row and isinstance(row["chosen"], list)
        prompt = () if implicit else turns_of(row, "prompt", "user", where)
        if not chosen or not rejected:
            yield "empty reply"
            continue
        if len(chosen) > 1 or len(rejected) > 1:  # the messages repeat the prompt
            if chosen[:-1] != rejected[:-1]:
                yield "prompts differ"
                continue
            if prompt and prompt[-1] not in chosen:
                yield "reply is not one assistant message"
                continue
            prompt = chosen[:-1]
        if chosen[-1][0] != "assistant" or rejected[-1][0] != "assistant":
            yield "reply is not one assistant message"
            continue
        yield _pair(prompt, chosen[-1][1], rejected[-1][1])


def rated_pairs(rows: Rows, objective: str) -> Iterator[Pair | str]:
    """A reader's own ratings: one reply a row, and a column of numbers for each objective.

    The rows of one prompt need not be adjacent. All combinations of its replies are candidates. A reply is text or one
    assistant message, and messages may repeat the prompt before it.
    """
    groups: dict[Turns, list] = {}
    for where, row in rows:
        prompt = rated_prompt(row, where)
        *before, (role, reply) = turns_of(row, "response", "assistant", where) or (("", ""),)
        if role != "assistant" or (before and _stripped(tuple(before)) != prompt):
            yield "reply is not one assistant message"
            continue
        groups.setdefault(prompt, []).append((reply, number_of(row, objective, where)))
    for prompt, replies in groups.items():
        if len(replies) == 1:
            yield "prompt with one response"
        yield from _ranked(prompt, replies)


def rated_prompt(row: dict, where: str) -> Turns:
    """The prompt of a row of ratings as it stands in pairs. Raises BadInput if it is neither text nor messages."""
    return _stripped(turns_of(row, "prompt", "user", where))


GENERATORS = {
    "hh-rlhf": hh_pairs,
    "helpsteer2": helpsteer_pairs,
    "pku-saferlhf": pku_pairs,
    "ultrafeedback": ultrafeedback_pairs,
    "unieval": unieval_pairs,
    "trl": trl_pairs,
    "rated": rated_pairs,
}


def _of_objective(rows: Rows, objective: str) -> Rows:
    """Rows without an `objective`, and rows of this one. Rows of another are no candidates, so none is counted."""
    return ((where, row) for where, row in rows if row.get("objective", objective) == objective)


def _pair(prompt: Turns, chosen: str, rejected: str, **marks: bool) -> Pair | str:
    """The pair with outer white space stripped and without empty system turns, or why it is of no use."""
    prompt = _stripped(prompt)
    chosen, rejected = chosen.strip(), rejected.strip()
    if not prompt or prompt[-1][0] != "user":
        return "prompt does not end with a user turn"
    if not all(text for _, text in prompt):
        return "empty turn in prompt"
    if not chosen or not rejected:
        return "empty reply"
    if chosen == rejected:
        return "identical replies"
    return Pair(prompt, chosen, rejected, **marks)


def _stripped(prompt: Turns) -> Turns:
    """Without outer white space in its turns, and without empty system turns."""
    turns = ((role, text.strip()) for role, text in prompt)
    return tuple(turn for turn in turns if turn != ("system", ""))


def _ranked(prompt: Turns, replies: list[tuple[str, float | None]]) -> Iterator[Pair | str]:
    """One outcome for each two of the rated replies; the reply with the higher rating is chosen."""
    for (one, rating), (two, other) in combinations(replies, 2):
        if rating is None or other is None:
            yield "unrated"
        elif rating == other:
            yield "tied ratings"
        elif rating > other:
            yield _pair(prompt, one, two, first=True)
        else:
            yield _pair(prompt, two, one, first=False)


def _helpsteer_turns(prompt: str) -> Turns:
    """HelpSteer2 writes several turns as text, `\\n<extra_id_1>Assistant\\n`, text, and so on."""
    first, *turns = re.split(r"\n?<extra_id_1>(User|Assistant)\n", prompt)
    opening = [("user", first)] if first.strip() else []
    roles = (speaker.lower() for speaker in turns[::2])
    return tuple(opening + list(zip(roles, turns[1::2], strict=True)))
