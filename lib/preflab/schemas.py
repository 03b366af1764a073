"""The schemas of preference data: known by their columns, one generator each.

A generator takes (where, row) and the objective. For every candidate it yields a `Pair`, or a
string: the reason why there is none. So whatever is lost can be counted, in one place.

Messages of errors name file, row and key but never quote a prompt or a reply: some of these data
sets are offensive on purpose.
"""

import re
from collections.abc import Iterator
from itertools import combinations
from typing import NamedTuple

from preflab.errors import BadInput
from preflab.sources import Table

HELPSTEER_ATTRIBUTES = ["helpfulness", "correctness", "coherence", "complexity", "verbosity"]
ULTRAFEEDBACK_ASPECTS = ["instruction_following", "honesty", "truthfulness", "helpfulness"]

Turns = tuple[tuple[str, str], ...]  # ((role, content), ...)
Rows = Iterator[tuple[str, dict]]  # ("train.jsonl: row 1", {column: value}), ...


class Pair(NamedTuple):
    """One preference. `first`: the chosen reply stood first in the source, None if it has no order.

    `conflict`: another label of the same row prefers the other reply (PKU-SafeRLHF only).
    """

    prompt: Turns
    chosen: str
    rejected: str
    first: bool | None = None
    conflict: bool = False


def hh_pairs(rows: Rows, objective: str) -> Iterator[Pair | str]:
    """Anthropic HH-RLHF: two whole dialogues that should differ in the last reply only."""
    for where, row in rows:
        prompt, _, chosen = _value(row, "chosen", str, where).rpartition("\n\nAssistant:")
        other, _, rejected = _value(row, "rejected", str, where).rpartition("\n\nAssistant:")
        before, *turns = re.split(r"\n\n(Human|Assistant):", prompt)
        if not prompt or not other or before.strip() or "\n\nHuman:" in chosen + rejected:
            yield "malformed dialogue"
        elif prompt != other:
            yield "prompts differ"
        else:
            roles = ("user" if speaker == "Human" else "assistant" for speaker in turns[::2])
            yield _pair(tuple(zip(roles, turns[1::2], strict=True)), chosen, rejected)


def helpsteer_pairs(rows: Rows, objective: str) -> Iterator[Pair | str]:
    """HelpSteer2: two consecutive rows answer one prompt, each attribute rated 0 to 4."""
    waiting = None
    for where, row in rows:
        prompt = _value(row, "prompt", str, where)
        reply = _value(row, "response", str, where), _rating(row, objective, (0, 4), where)
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
    """PKU-SafeRLHF: two responses, and the ids of the better and of the safer one.

    `safer_response_id` is there, and used, also where both responses are safe or both are not.
    """
    for where, row in rows:
        for key in ("better_response_id", "safer_response_id"):
            if row.get(key) not in (0, 1):
                raise BadInput(f"{where}: key {key!r} is {row.get(key)!r:.20}; expected 0 or 1")
        chosen = int(row[f"{objective}_response_id"])
        yield _pair(
            (("user", _value(row, "prompt", str, where)),),
            _value(row, f"response_{chosen}", str, where),
            _value(row, f"response_{1 - chosen}", str, where),
            first=chosen == 0,
            conflict=row["better_response_id"] != row["safer_response_id"],
        )


def ultrafeedback_pairs(rows: Rows, objective: str) -> Iterator[Pair | str]:
    """UltraFeedback: up to four completions, aspects rated as text, "N/A" where unrated.

    All six combinations are candidates and those of differing rating become pairs: more of the
    signal than best-versus-worst, at the price of prompts that come with several pairs.
    TruthfulQA's prompts are left out, as in Zephyr's recipe, since they are a benchmark.
    Aspects are rated 1 to 5; up to 10 is accepted for files that use the scale of overall_score.
    """
    for where, row in rows:
        if row.get("source") == "truthful_qa":
            yield "source is truthful_qa"
            continue
        replies = []
        for k, completion in enumerate(_value(row, "completions", list, where)):
            here = f"{where}, completion {k}"
            annotations = _value(completion, "annotations", dict, here)
            annotation = _value(annotations, objective, dict, here) or {"Rating": None}
            rating = _rating(annotation, "Rating", (1, 10), f"{here}, {objective}")
            replies.append((_value(completion, "response", str, here), rating))
        yield from _ranked((("user", _value(row, "instruction", str, where)),), replies)


def unieval_pairs(rows: Rows, objective: str) -> Iterator[Pair | str]:
    """UniEval topical_chat: several systems answer one dialogue, given a fact to talk about.

    The rows of a (fact, dialogue) need not be adjacent. Candidates are all combinations within it.
    """
    groups: dict[tuple[str, str], list] = {}
    for where, row in rows:
        key = _value(row, "context", str, where), _value(row, "source", str, where)
        rating = _rating(_value(row, "scores", dict, where), objective, (0, 5), where)
        groups.setdefault(key, []).append((_value(row, "system_output", str, where), rating))
    for (fact, dialogue), replies in groups.items():
        yield from _ranked((("user", f"{fact.strip()}\n\n{dialogue.strip()}"),), replies)


def trl_pairs(rows: Rows, objective: str) -> Iterator[Pair | str]:
    """TRL's preference formats: text or messages, the prompt in its own column or repeated.

    Rows of another `objective` are no candidates and are not counted as dropped.
    """
    for where, row in rows:
        if row.get("objective", objective) != objective:
            continue
        chosen = _turns(row, "chosen", "assistant", where)
        rejected = _turns(row, "rejected", "assistant", where)
        implicit = "prompt" not in row and isinstance(row["chosen"], list)
        prompt = () if implicit else _turns(row, "prompt", "user", where)
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


GENERATORS = {
    "hh-rlhf": hh_pairs,
    "helpsteer2": helpsteer_pairs,
    "pku-saferlhf": pku_pairs,
    "ultrafeedback": ultrafeedback_pairs,
    "unieval": unieval_pairs,
    "trl": trl_pairs,
}
# The columns by which a schema is known, the more specific ones first.
SIGNATURES = {
    "unieval": {"source", "context", "system_output", "scores"},
    "ultrafeedback": {"instruction", "completions"},
    "pku-saferlhf": {"prompt", "response_0", "response_1"},
    "helpsteer2": {"prompt", "response"},
    "trl": {"prompt", "chosen", "rejected"},
    "hh-rlhf": {"chosen", "rejected"},
}


def schema_of(tables: list[Table]) -> str:
    """The one schema of all tables. Raises BadInput where columns are unknown or schemas mix."""
    found = set()
    for table in tables:
        if not len(table.rows):
            raise BadInput(f"{table.name}: is empty; expected at least one row")
        row = table.rows[0]
        name = next((name for name, needed in SIGNATURES.items() if needed <= set(row)), None)
        if name is None:
            known = "; ".join(f"{name} ({', '.join(sorted(c))})" for name, c in SIGNATURES.items())
            raise BadInput(f"{table.name}: columns {', '.join(row)}; expected those of {known}")
        messages = name == "hh-rlhf" and isinstance(row["chosen"], list)
        found.add("trl" if messages else name)
    if len(found) > 1:
        names = ", ".join(table.name for table in tables)
        raise BadInput(f"{names}: schemas {', '.join(sorted(found))}; expected one schema")
    return found.pop()


def objectives_in(schema: str, tables: list[Table]) -> list[str]:
    """The objectives that the rows hold labels for; "default" where there is only one, unnamed."""
    where, row = next(tables[0].numbered())
    match schema:
        case "helpsteer2":
            return [name for name in HELPSTEER_ATTRIBUTES if name in row]
        case "pku-saferlhf":
            return ["better", "safer"]
        case "ultrafeedback":
            return ULTRAFEEDBACK_ASPECTS
        case "unieval":
            return list(_value(row, "scores", dict, where))
        case "trl" if "objective" in row:
            rows = (numbered for table in tables for numbered in table.numbered())
            return sorted({_value(row, "objective", str, where) for where, row in rows})
    return ["default"]


def _pair(prompt: Turns, chosen: str, rejected: str, **marks: bool) -> Pair | str:
    """The pair, outer white space stripped, or why it is of no use. Empty system turns go."""
    prompt = tuple((role, text.strip()) for role, text in prompt)
    prompt = tuple(turn for turn in prompt if turn != ("system", ""))
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


def _ranked(prompt: Turns, replies: list[tuple[str, float | None]]) -> Iterator[Pair | str]:
    """One outcome for each two of the rated replies; the higher rating is chosen."""
    for (one, rating), (two, other) in combinations(replies, 2):
        if rating is None or other is None:
            yield "unrated"
        elif rating == other:
            yield "tied ratings"
        elif rating > other:
            yield _pair(prompt, one, two, first=True)
        else:
            yield _pair(prompt, two, one, first=False)


def _rating(row: dict, key: str, scale: tuple[int, int], where: str) -> float | None:
    """row[key] as a number, so that "10" > "9"; None where it is null or "N/A"."""
    if key not in row:
        raise BadInput(f"{where}: key {key!r} is missing; expected a rating")
    value = row[key]
    if value is None or value == "N/A":
        return None
    try:
        number = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not scale[0] <= number <= scale[1]:  # also false for nan
        expected = f"expected a number from {scale[0]} to {scale[1]}, or 'N/A'"
        raise BadInput(f"{where}: key {key!r} is {value!r:.20}; {expected}")
    return number


def _value(row: dict, key: str, kind: type, where: str):
    """row[key], which must be a `kind`; null is read as the empty one."""
    if not isinstance(row, dict) or key not in row:
        raise BadInput(f"{where}: key {key!r} is missing; expected a {kind.__name__}")
    value = kind() if row[key] is None else row[key]
    if not isinstance(value, kind):
        found = type(value).__name__
        raise BadInput(f"{where}: key {key!r} is of type {found}; expected a {kind.__name__}")
    if kind is str and re.search("[\ud800-\udfff]", value):
        raise BadInput(f"{where}: key {key!r} holds half a surrogate pair; expected Unicode text")
    return value


def _turns(row: dict, key: str, role: str, where: str) -> Turns:
    """Messages as turns; plain text is one turn of the given role."""
    if not isinstance(row.get(key), list):
        return ((role, _value(row, key, str, where)),)
    turns = []
    for message in row[key]:
        turn = tuple(_value(message, part, str, f"{where}, {key}") for part in ("role", "content"))
        if turn[0] not in ("system", "user", "assistant"):
            expected = "expected system, user or assistant"
            raise BadInput(f"{where}: key '{key}.role' is {turn[0]!r:.20}; {expected}")
        turns.append(turn)
    return tuple(turns)


def _helpsteer_turns(prompt: str) -> Turns:
    """HelpSteer2's several turns: text, `\\n<extra_id_1>Assistant\\n`, text, and so on."""
    first, *turns = re.split(r"\n?<extra_id_1>(User|Assistant)\n", prompt)
    opening = [("user", first)] if first.strip() else []
    roles = (speaker.lower() for speaker in turns[::2])
    return tuple(opening + list(zip(roles, turns[1::2], strict=True)))
