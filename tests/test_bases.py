"""Base models: a model by name tuned on dialogues first, its chat template, and what its cache entry knows."""

import json

import pytest
import torch
from transformers import AutoTokenizer

from preflab.data.dialogues import dialogues
from preflab.errors import BadInput
from preflab.models import Lora, load_model, save_model, unwrap
from preflab.paths import project_root
from preflab.running.identity import identity
from preflab.running.reading import resolve
from preflab.stages.base import spoken
from preflab.tokenizers import load_tokenizer

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
SFT = {"steps": 12, "batch_size": 4, "learning_rate": 1e-2}


@pytest.fixture
def named(tmp_path, make_model, tokenizer, cache):
    """A model in a folder whose tokenizer has no chat template, dialogues in UltraChat's schema, parameters."""
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

    def parameters(sft=(), **base):
        given = {"model": str(tmp_path / "pretrained"), "sft_source": f"files:{tmp_path / 'chat'}", "context": 64}
        return resolve(NOTEBOOK, {"base": {**given, "sft": {**SFT, **dict(sft)}, **base}}, "test")

    return parameters


def test_a_model_by_name_is_tuned_on_dialogues_and_learns_their_template(named, cache):
    p = named()
    with pytest.raises(BadInput, match="has no chat template"):
        load_tokenizer(p.base.model)
    base = p.base_model
    losses = json.loads((base.folder / "sft.json").read_text())["loss"]
    assert base.folder.parent == cache.root and losses[-1] < 0.8 * losses[0]
    before, after = load_model(p.base.model, torch.device("cpu"), torch.float32), base.load()
    assert any((a != b).any() for a, b in zip(before.parameters(), after.parameters(), strict=True))
    tokenizer = base.tokenizer()
    ask = {"add_generation_prompt": True, "tokenize": False}
    asked = tokenizer.apply_chat_template(DIALOGUES[0][:1], **ask)
    whole = tokenizer.apply_chat_template(DIALOGUES[0][:2], tokenize=False)
    assert whole.startswith(asked) and whole.endswith(tokenizer.eos_token)
    assert AutoTokenizer.from_pretrained(base.location).chat_template == tokenizer.chat_template


def test_its_identity_knows_what_it_was_tuned_on(named):
    same = identity(named().base_model)
    others = [named(sft={"steps": 13}), named(seed=1), named(sft_source=None), named(context=63)]
    assert len({same, *(identity(p.base_model) for p in others)}) == 5
    assert identity(named().base_model) == same


def test_a_model_that_is_taken_as_it_is_lies_where_it_lies_and_has_no_entry(named, cache):
    p = named(sft_source=None)
    assert p.base_model.taken_as_it_is and p.base_model.location == p.base.model
    assert not cache.root.exists()
    assert named(sft_source=None, revision="abc").base_model.revision == "abc"
    tuned = named(revision="abc").base_model
    assert not tuned.taken_as_it_is and tuned.revision is None and tuned.location == str(tuned.folder / "model")


def test_dialogues_for_sft_are_taken_where_they_are_marked(named, rng):
    p = named()
    found = dialogues(p.base.sft_source, 3, rng)
    assert len(found) == 3 and all(row["messages"] in DIALOGUES for row in found)


def test_dialogues_of_files_are_looked_for_under_data(named, tmp_path):
    p = resolve(
        NOTEBOOK,
        {"data": str(tmp_path), "base": {"model": "x", "sft_source": "files:chat"}},
        "test",
    )
    assert p.base_model.settings.sft_source == f"files:{tmp_path / 'chat'}"


def test_a_fresh_policy_is_an_adapter_on_the_base_or_a_copy_of_it_and_the_base_stays(named):
    base = named().base_model
    model = base.load()
    assert base.load() is model
    before = {name: t.clone() for name, t in model.state_dict().items()}
    zero, again, one = ({}, {}, {})
    for found, seed in ((zero, 0), (again, 0), (one, 1)):
        policy = base.fresh_policy(Lora(rank=2, alpha=4), seed)
        found.update({n: p.detach().clone() for n, p in policy.named_parameters() if p.requires_grad})
        assert unwrap(policy) is model
    assert all(torch.equal(zero[n], again[n]) for n in zero) and any(not torch.equal(zero[n], one[n]) for n in zero)
    copied = base.fresh_policy(Lora(rank=0), 0)
    assert copied is not model and all(
        torch.equal(a, b) for a, b in zip(copied.parameters(), model.parameters(), strict=True)
    )
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.add_(1)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_a_base_of_a_world_speaks_its_language(cache):
    base = {"hidden_size": 16, "layers": 1, "heads": 2, "sft": {"steps": 60, "batch_size": 16, "learning_rate": 1e-2}}
    p = resolve(NOTEBOOK, {"base": base, "source": "world:conflict"}, "test")
    found = spoken(p.base_model, 16, 64)
    assert found == spoken(p.base_model, 16, 64)
    assert 0 < found["well-formed"] < 1 and found["distinct"] > 0.5 and found["faults"] > 0
    other = resolve(NOTEBOOK, {"base": base | {"seed": 1}, "source": "world:conflict"}, "test").base_model
    ours, theirs = p.base_model.load(), other.load()
    assert any((a != b).any() for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_bad_input_is_one_line(named, tmp_path, rng):
    with pytest.raises(BadInput, match="sft_source='world:conflict': expected hub:REPO or files:PATH"):
        dialogues("world:conflict", 3, rng)
    bad = tmp_path / "bad.jsonl"
    bad.write_text(json.dumps({"text": "no messages"}))
    with pytest.raises(BadInput, match=r"bad\.jsonl: row 1: key 'messages' expected a list"):
        dialogues(f"files:{bad}", 3, rng)
    with pytest.raises(BadInput, match=r"base\.sft_source=.*: expected none for base\.model='tiny'"):
        named(model="tiny")
