"""Texts without a preference: dialogues that a model is tuned on, and instructions that it is asked to answer."""

from pathlib import Path

import datasets
import huggingface_hub
import numpy as np

from preflab.data.sizes import check_sizes
from preflab.data.sources import check_reach, file_tables, hub_tables, parse_source, place, read_rows
from preflab.errors import BadInput
from preflab.hub import ask_hub_once
from preflab.paths import project_root


def dialogues(source: str, n: int, rng: np.random.Generator) -> datasets.Dataset:
    """At most n random training dialogues of a hub: or files: source, as rows of `messages`, the schema of UltraChat.

    If a source has splits for supervised fine-tuning (`train_sft` of UltraChat), only those are used. Raises BadInput
    for a world, for rows without messages and if there are no training dialogues.
    """
    kind, name = parse_source(source)
    if kind == "world":
        raise BadInput(f"sft_source={source!r}: expected hub:REPO or files:PATH")
    tables = hub_tables(name, None, None)[0] if kind == "hub" else file_tables(name, None)
    tables = [t for t in tables if t.split == "train"]
    tables = [t for t in tables if "train_sft" in t.name] or tables
    rows = []
    for where, row in (pair for table in tables for pair in table.numbered()):
        messages = row.get("messages")
        if not isinstance(messages, list) or not all(
            isinstance(m, dict) and {"role", "content"} <= set(m) for m in messages
        ):
            raise BadInput(f"{where}: key 'messages' expected a list of {{role, content}}")
        rows.append({"messages": [{k: m[k] for k in ("role", "content")} for m in messages]})
    if not rows:
        raise BadInput(f"{source}: no training dialogues; expected rows of messages")
    return datasets.Dataset.from_list([rows[i] for i in rng.permutation(len(rows))[:n]])


def instructions(source: str, revision: str | None = None) -> list[dict]:
    """The prompts of AlpacaEval: rows with an `instruction`, from files:PATH or from alpaca_eval.json of hub:REPO.

    A relative path begins at the checkout. Raises BadInput for a world, for a path that is not there, for rows without
    an instruction, and if the hub cannot be reached.
    """
    kind, name = parse_source(source)
    if kind == "world":
        raise BadInput(f"alpaca_eval={source!r}: expected hub:REPO or files:PATH")
    if kind == "files":
        name = str(project_root() / place(name))
        check_reach(f"files:{name}")
        check_sizes(f"files:{name}")
    else:
        ask_hub_once()
    try:  # one file is fetched, because the repository is a script and `datasets` no longer runs scripts
        path = name if kind == "files" else huggingface_hub.hf_hub_download(
            name, "alpaca_eval.json", repo_type="dataset", revision=revision
        )  # fmt: skip
    except (OSError, huggingface_hub.errors.HfHubHTTPError, huggingface_hub.errors.HFValidationError):
        raise BadInput(f"{source}: alpaca_eval.json is out of reach; expected a network and a public repo") from None
    rows = read_rows(Path(path))
    if not rows:
        raise BadInput(f"{path}: no rows, expected AlpacaEval's prompts")
    for n, row in enumerate(rows, 1):
        if not isinstance(row.get("instruction"), str):
            raise BadInput(f"{path}: row {n}: key 'instruction' expected text")
    return rows
