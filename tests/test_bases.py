"""Base models: a model by name tuned on dialogues first, its chat template, and what its cache entry knows."""

import json

import pytest
import torch
from transformers import AutoTokenizer

from preflab import bases
from preflab.errors import BadInput
from preflab.models import load_model, load_tokenizer, save_model
from preflab.parameters import resolve
from preflab.paths import project_root
from preflab.sources import dialogues

NOTEBOOK = project_root() / "notebooks" / "src" / "02_g_dynamics.py"
DIALOGUES = [
    [
        {"role": "user", "content": f"how do i fix the old lamp {place} ?"},
        {"role": "assistant", "content": "use the wire . then test it ."},
        {"role": "user", "content": "how do i open the new door at home ?"},
        {"role": "assistant", "content": "use the key ."},
    ]
    for place in ("at home", "at work", "in town", "by night")
]


@pytest.fixture
def named(tmp_path, make_model, tokenizer, monkeypatch):
    """A model in a folder whose tokenizer has no chat template, dialogues in UltraChat's schema, parameters."""
    monkeypatch.setenv("PREFLAB_RESULTS", str(tmp_path / "results"))
    save_model(make_model(dtype=torch.float32), tokenizer, tmp_path / "pretrained")
    for file in (tmp_path / "pretrained").glob("chat_template*"):
        file.unlink()
    config = tmp_path / "pretrained" / "tokenizer_config.json"
    values = json.loads(config.read_text())
    values.pop("chat_template", None)
    config.write_text(json.dumps(values))
    rows = [{"prompt": "x", "prompt_id": str(i), "messages": m} for i, m in enumerate(DIALOGUES)]
    (tmp_path / "chat").mkdir()
    (tmp_path / "chat" / "train_sft.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "chat" / "train_gen.jsonl").write_text(json.dumps({"messages": []}))

    def parameters(**given):
        sft = {"sft_steps": 12, "sft_batch_size": 4, "sft_learning_rate": 1e-2, "context": 64}
        given = {"model": str(tmp_path / "pretrained"), "sft_source": f"files:{tmp_path / 'chat'}", **sft, **given}
        return resolve(NOTEBOOK, given, "test")

    return parameters


def test_a_model_by_name_is_tuned_on_dialogues_and_learns_their_template(named, tmp_path):
    p = named()
    with pytest.raises(BadInput, match="has no chat template"):
        load_tokenizer(p.model)
    folder = bases.base_folder(p)
    losses = json.loads((tmp_path / "results" / "cache").glob("base-*/sft.json").__next__().read_text())["loss"]
    assert losses[-1] < 0.8 * losses[0]
    before, after = load_model(p.model, torch.device("cpu"), torch.float32), bases.base_model(p)
    assert any((a != b).any() for a, b in zip(before.parameters(), after.parameters(), strict=True))
    tokenizer = bases.base_tokenizer(p)
    ask = {"add_generation_prompt": True, "tokenize": False}
    asked = tokenizer.apply_chat_template(DIALOGUES[0][:1], **ask)
    whole = tokenizer.apply_chat_template(DIALOGUES[0][:2], tokenize=False)
    assert whole.startswith(asked) and whole.endswith(tokenizer.eos_token)
    assert AutoTokenizer.from_pretrained(folder).chat_template == tokenizer.chat_template


def test_its_key_knows_what_it_was_tuned_on(named):
    key = bases.base_key(named())
    assert key != bases.base_key(named(sft_steps=13)) and key != bases.base_key(named(base_seed=1))
    assert bases.base_folder(named(sft_source=None)) == named().model


def test_dialogues_for_sft_are_taken_where_they_are_marked(named, rng):
    p = named()
    found = dialogues(p.sft_source, 3, rng)
    assert len(found) == 3 and all(row["messages"] in DIALOGUES for row in found)


def test_bad_input_is_one_line(named, tmp_path, rng):
    with pytest.raises(BadInput, match="sft_source='world:conflict': expected hub:REPO or files:PATH"):
        dialogues("world:conflict", 3, rng)
    bad = tmp_path / "bad.jsonl"
    bad.write_text(json.dumps({"text": "no messages"}))
    with pytest.raises(BadInput, match=r"bad\.jsonl: row 1: key 'messages' expected a list"):
        dialogues(f"files:{bad}", 3, rng)
    with pytest.raises(BadInput, match="expected none for model='tiny'"):
        named(model="tiny")
