"""Malformed models, tokenizers, adapters and data end in one line, whoever made them; and what a run may do.

Each case is a file or a folder that somebody else made. The command is refused before a kernel starts.
"""

import gzip
import json
import re
import resource
import shutil
import socket
import struct
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from nbconvert import HTMLExporter
from nbformat import v4
from safetensors.torch import load_file, save_file
from transformers.utils import is_env_variable_true
from typer.testing import CliRunner

from preflab import hub, safety
from preflab.data import sizes
from preflab.data.pairs import load_pairs
from preflab.data.worlds import vocabulary
from preflab.errors import BadInput
from preflab.models import Shape, load_model, save_model, tiny_model
from preflab.running import notebooks
from preflab.running.asked import parameters_of
from preflab.running.cli import app
from preflab.running.quiet import quiet
from preflab.tokenizers import load_tokenizer, word_tokenizer

ROOT = Path(__file__).resolve().parents[1]
SENTENCES = (ROOT / "REVIEWING.md").read_text().split("\n## What a run may do\n")[1].split("\n## ")[0]
CODE = "open({!r}, 'w').close()\nclass C:\n    pass\n"  # of a folder; if it runs, it leaves a file
PAIR = {"prompt": "p", "chosen": "c", "rejected": "r"}
MANY = 20_000


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A tiny Llama in a folder, and its weights."""
    folder, tokenizer = tmp_path_factory.mktemp("sound") / "model", word_tokenizer(vocabulary())
    save_model(tiny_model(Shape("llama", 16, 2, 2, 64), tokenizer, 0), tokenizer, folder)
    return folder


@pytest.fixture
def folder(sound, tmp_path):
    return Path(shutil.copytree(sound, tmp_path / "in" / "model"))


def no_kernel(*_):
    raise AssertionError("a kernel starts")


def tree(root):
    return {f.relative_to(root): (f.stat().st_size, f.stat().st_mtime_ns) for f in root.rglob("*")}


@pytest.fixture
def refused(tmp_path, monkeypatch):
    """refused(words, said): the command ends with 2 and one line of at most 300 characters, and leaves nothing."""
    monkeypatch.setattr(notebooks, "_run_papermill", no_kernel)
    (tmp_path / "in").mkdir(exist_ok=True)

    def refuse(words, said):
        before, peak = tree(tmp_path), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 2, result.exception or result.output
        assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1 and result.stdout == ""
        assert len(result.stderr) <= 301 and result.stderr[:-1].isprintable() and said in result.stderr
        assert tree(tmp_path) == before
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 500_000  # kB

    return refuse


def run_on(model):
    return ["run", "01_sequential_settings", "-p", f"base={{model: {model}}}"]


# --- models ---------------------------------------------------------------------------------------


def edited(name, **values):
    def change(folder):
        file = folder / name
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return change


def written(name, content):
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def header(tensors, length=None):
    """A safetensors file of a header alone."""
    text = json.dumps(tensors).encode()
    return written("model.safetensors", struct.pack("<Q", length or len(text)) + text)


def weights(change):
    def changed(folder):
        file = folder / "model.safetensors"
        save_file(change(load_file(file)), file, {"format": "pt"})

    return changed


def cut(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-500])


def sharded(shard):
    """An index that names one file for every tensor, which lies there."""

    def change(folder):
        names = list(load_file(folder / "model.safetensors"))
        (folder / "model.safetensors").rename(folder / "elsewhere")
        if not shard.startswith("missing"):
            (folder / "elsewhere").rename(folder / shard)
        index = {"metadata": {}, "weight_map": dict.fromkeys(names, shard)}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return change


def pickled(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def with_code(name, key):
    """A configuration that asks for the code beside it."""

    def change(folder):
        (folder / "own.py").write_text(CODE.format(str(folder / "ran")))
        edited(name, auto_map={key: "own.C"}, model_type="own", tokenizer_class="Own")(folder)

    return change


def adapter(**config):
    """An adapter in a model's folder; transformers would look for its base by name, and add it."""
    return edited_new("adapter_config.json", {"peft_type": "LORA", "base_model_name_or_path": "org/other", **config})


def edited_new(name, values):
    return written(name, json.dumps(values))


def padded(name, size):
    """A file that is so large, and takes no room on the disk."""

    def change(folder):
        with (folder / name).open("wb") as file:
            file.truncate(size)

    return change


def template(text):
    return written("chat_template.jinja", text)


def part(name, value):
    return lambda tensors: {k: value(v) if name in k else v for k, v in tensors.items()}


LIE = {"lm_head.weight": {"dtype": "F32", "shape": [10**9, 10**9], "data_offsets": [0, 4]}}
MODELS = {
    "weights cut in half": (cut, "not readable as safetensors: Error while deserializing header: incomplete metadata"),
    "a header that lies of sizes": (header(LIE), "not readable as safetensors: "),
    "a header of gigabytes": (
        header({}, 10**12),
        "not readable as safetensors: Error while des",
    ),
    "a header that is no JSON": (written("model.safetensors", struct.pack("<Q", 3) + b"{,}"), "not readable as safe"),
    "no header": (written("model.safetensors", b""), "not readable as safetensors: "),
    "NaN": (weights(part("norm", lambda t: t * float("nan"))), "has NaN or infinity; expected numbers"),
    "infinity": (weights(part("norm", lambda t: t / 0)), "has NaN or infinity; expected numbers"),
    "missing tensors": (
        weights(lambda tensors: {k: v for k, v in tensors.items() if "up_proj" not in k}),
        "2 tensors are missing (model.layers.0.mlp.up_proj.weight, ...)",
    ),
    "another shape": (weights(part("up_proj", lambda t: t[:3].clone())), "2 tensors have not the shape of config.json"),
    "a shard is missing": (sharded("missing-00002.safetensors"), "which is not there; expected every file"),
    "an index out of the folder": (
        sharded("../outside.safetensors"),
        "names '../outside.safetensors'; expected a",
    ),
    "an index of pickles": (sharded("weights.bin"), "names 'weights.bin'; expected a safetensors file"),
    "an index of nothing": (
        lambda folder: (pickled(folder), edited_new("model.safetensors.index.json", [])(folder)),
        "no 'weight_map'; expected the file of every tensor",
    ),
    "pickles alone": (pickled, "no model.safetensors; expected safetensors, because pickle files may run code"),
    "weights by a path": (
        edited("config.json", transformers_weights="../x.safetensors"),
        "must reference a file",
    ),
    "config is no JSON": (written("config.json", "{"), "is not a valid JSON file"),
    "config is a list": (written("config.json", "[]"), "config.json: ValueError: Unrecognized model"),
    "config of brackets": (written("config.json", "[" * 100_000), "config.json: RecursionError: "),
    "config of gigabytes": (padded("config.json", 2**32), "config.json: 4295 MB; expected at most 134 MB"),
    "code of a model": (
        with_code("config.json", "AutoConfig"),
        "config.json: asks for code of its own, and none is run",
    ),
    "no heads": (edited("config.json", num_attention_heads=0), "config.json: ZeroDivisionError"),
    "ten million layers": (edited("config.json", num_hidden_layers=10**7), "10000000 layers; expected 1 to 1000"),
    "layers are text": (edited("config.json", num_hidden_layers="two"), "config.json: StrictDataclass"),
    "hidden size beyond memory": (edited("config.json", hidden_size=2 * 10**14), "tensors have not the shape of conf"),
    "tokenizer is no JSON": (written("tokenizer.json", "{"), "not loadable: Expecting property name"),
    "tokenizer of another kind": (written("tokenizer.json", '{"model": {"type": "Own"}}'), "expected a tokenizer"),
    "tokenizer of gigabytes": (padded("tokenizer.json", 2**32), "tokenizer.json: 4295 MB; expected at most 134 MB"),
    "code of a tokenizer": (
        with_code("tokenizer_config.json", "AutoTokenizer"),
        "asks for code of its own, and none is run; expected a tok",
    ),
    "more tokens than the model": (edited("tokenizer_config.json", pad_token="<own>"), "the tokenizer has token 93"),
    "template that does not compile": (template("{% for m in"), "TemplateSyntaxError: unexpected 'end of template'"),
    "template that asks for Python": (
        template("{{ ''.__class__.__mro__ }}"),
        "SecurityError: access to attribute",
    ),
    "template that asks for files": (template("{% include '/etc/passwd' %}"), "expected a chat template"),
    "template that calls the system": (
        template("{{ cycler.__init__.__globals__.os.system('touch ran') }}"),
        "SecurityError: access to attribute '__init__'",
    ),
    "template that never ends": (
        template("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"),
        "TimeoutError: not done after 1 s",
    ),
    "template that fills the memory": (template("{{ 'a' * 10**11 }}"), "MemoryError"),
    "template that raises": (template("{{ raise_exception('own words\nin lines') }}"), "own words"),
    "adapter of another base": (adapter(r=4), "holds an adapter (adapter_config.json); expected a whole model"),
    "adapter of another rank": (adapter(r=10**9), "holds an adapter (adapter_config.json); expected a whole model"),
    "adapter with more modules": (adapter(modules_to_save=["none"]), "holds an adapter (adapter_config.json); expec"),
}


@pytest.mark.parametrize("case", MODELS)
def test_a_malformed_model_is_one_line(case, folder, refused, monkeypatch):
    monkeypatch.setattr(safety, "TEMPLATE_SECONDS", 1)
    change, said = MODELS[case]
    change(folder)
    refused(run_on(folder), said)
    assert not (folder / "ran").exists() and not (Path.cwd() / "ran").exists()


def test_a_sound_model_passes_whole_or_in_shards_and_so_does_one_that_no_weights_are_asked_of(folder):
    safety.check_folder(folder)
    sharded("model-00001-of-00001.safetensors")(folder)
    safety.check_folder(folder)
    (folder / "model-00001-of-00001.safetensors").unlink()
    safety.check_folder(folder, weights=False)


def test_a_limit_ends_with_its_block():
    with pytest.raises(MemoryError), safety._at_most(5, 2**28):
        bytearray(2**30)
    with safety._at_most(5, 2**28):
        pass
    assert len(bytearray(2**30)) == 2**30


def test_a_gguf_that_is_cut_or_lies_is_one_line(make_gguf, tmp_path, refused):
    whole, *_ = make_gguf()
    content = whole.read_bytes()
    lie = content[:8] + struct.pack("<Q", 10**15) + content[16:]  # so many tensors
    for name, bad in {"half": content[: len(content) // 2], "lie": lie, "text": b"no GGUF at all"}.items():
        (tmp_path / f"{name}.gguf").write_bytes(bad)
        refused(run_on(tmp_path / f"{name}.gguf"), f"{name}.gguf: not readable as a GGUF: ")


# --- data -----------------------------------------------------------------------------------------


def repeated(text, nested=False):
    """A column of one text, many times: Parquet stores it once."""
    column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(MANY, np.int32)), pa.array([text]))
    if not nested:
        return column
    turn = pa.StructArray.from_arrays([pa.array(["user"] * MANY), column], ["role", "content"])
    return pa.ListArray.from_arrays(pa.array(np.arange(MANY + 1, dtype=np.int32)), turn)


def parquet(**columns):
    def write(file):
        pq.write_table(pa.table(columns), file, compression="zstd", store_schema=False)

    return "a.parquet", write


def gzipped(pieces, n):
    def write(file):
        with gzip.open(file, "wb", compresslevel=1) as out:
            for _ in range(n):
                out.write(pieces)

    return "a.jsonl.gz", write


def text(content, name="a.jsonl"):
    return name, lambda file: file.write_bytes(content if isinstance(content, bytes) else content.encode())


def of_size(name, size):
    return name, lambda file: padded(file.name, size)(file.parent)


LONG, MEGA = "x" * 10**6, b"\n" * 2**20
DATA = {
    "Parquet that unfolds to 20 GB": (parquet(prompt=repeated(LONG)), "text of more than 134,217,728 bytes"),
    "the same in messages": (parquet(prompt=repeated(LONG, nested=True)), "text of more than 134,217,728 bytes"),
    "Parquet of many nulls": (parquet(prompt=pa.nulls(3 * 10**7)), "data of more than 20,000,000 values"),
    "Parquet of wide values": (
        parquet(a=pa.repeat(pa.scalar(b"x" * 10**5, pa.binary(10**5)), 1_400)), "text of more than 134,217,728 by"),
    "Parquet cut in half": (text(b"PAR1" + b"\0" * 50, "a.parquet"), "truncated or corrupt; expected a Parquet file"),
    "a prompt of numbers": (parquet(prompt=[1], chosen=["c"], rejected=["r"]), "key 'prompt' is of type int; expected"),
    "a prompt of bytes": (parquet(prompt=[b"\xff"], chosen=["c"], rejected=["r"]), "key 'prompt' is of type bytes"),
    "a prompt of lists": (parquet(prompt=[[1]], chosen=["c"], rejected=["r"]), "key 'role' is missing; expected a str"),
    "a year that Python has not": (
        parquet(**{k: [v] for k, v in PAIR.items()}, at=pa.array([2**60], pa.timestamp("us"))),
        "column 'at' has dates out of range; expected years 1 to 9999",
    ),
    "gzip that unfolds to gigabytes": (gzipped(MEGA, 129), "text of more than 134,217,728 bytes"),
    "gzip of one line": (gzipped(b"x" * 2**20, 17), "a line of more than 16,777,216 bytes"),
    "a line that never ends": (of_size("a.jsonl", 2**25), "a line of more than 16,777,216 bytes"),
    "a list that never ends": (of_size("a.json", 2**28), "text of more than 134,217,728 bytes"),
    "gzip cut in half": (text(gzip.compress(json.dumps(PAIR).encode())[:-12], "a.jsonl.gz"), "truncated or corrupt"),
}  # fmt: skip


@pytest.mark.parametrize("case", DATA)
def test_malformed_data_are_one_line(case, tmp_path, refused, monkeypatch):
    monkeypatch.setattr(sizes, "LARGEST", 2**27)
    monkeypatch.setattr(sizes, "LONGEST", 2**24)
    (name, write), said = DATA[case]
    file = tmp_path / "in" / name
    write(file)
    refused(["pairs", f"files:{file}"], said)


@pytest.mark.parametrize(
    ("name", "limit", "most"),
    [("a.parquet", "LARGEST", 10), ("a.jsonl", "LARGEST", 16), ("a.jsonl", "LONGEST", 10), ("a.parquet", "LONGEST", 2)],
)
def test_what_a_file_holds_is_counted_right(name, limit, most, tmp_path, monkeypatch):
    """At the limit it passes, and below it does not: texts in parts and lists, nulls, lines that cross pieces."""
    table = pa.table({"a": ["xy", None, "xy", "é"], "b": [["1", "23"], [], None, ["4"]]})  # 2 + 2 + 2 and 1 + 2 + 1
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=3)
    (tmp_path / "a.jsonl").write_bytes(b"123\n1234567890\n1")
    check = sizes._check
    monkeypatch.setattr(sizes, "PIECE", 4)
    monkeypatch.setattr(sizes, "_check", lambda file, what, *n: what == "pages" or check(file, what, *n))
    monkeypatch.setattr(sizes, limit, most)
    sizes.check_sizes(f"files:{tmp_path / name}")
    monkeypatch.setattr(sizes, limit, most - 1)
    for path in (tmp_path / name, tmp_path):
        with pytest.raises(BadInput, match=f"of more than {most - 1} bytes"):
            sizes.check_sizes(f"files:{path}")


# --- what a run may do ----------------------------------------------------------------------------


def test_without_a_name_of_a_hub_no_address_is_asked_for(folder, tmp_path, monkeypatch):
    asked = []

    def ask(*address, **_):
        asked.append(address)
        raise OSError("no network")

    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, ask)
    monkeypatch.setattr(socket.socket, "connect", ask)
    monkeypatch.setattr(hub, "_answers", lambda: ask("hub"))
    for notebook in ("00_start_here", "01_sequential_settings", "02_g_dynamics", "90_benchmarks"):
        parameters_of(notebook, "default", [])
    (tmp_path / "a.jsonl").write_text(f"{json.dumps(PAIR)}\n" * 30)
    parameters_of(
        "03_component_ablations", "default", [f"source=files:{tmp_path / 'a.jsonl'}", f"base={{model: {folder}}}"]
    )
    load_pairs("world:conflict", "helpful", max_train=4, max_test=4)
    load_model(str(folder), torch.device("cpu"), torch.float32)
    load_tokenizer(str(folder))
    assert not asked
    with pytest.raises(OSError, match="no network"):
        load_tokenizer("org/model")
    assert asked == [("hub",)]


def test_code_beside_a_model_that_transformers_knows_stays_unread(folder):
    (folder / "own.py").write_text(CODE.format(str(folder / "ran")))
    edited("config.json", auto_map={"AutoModelForCausalLM": "own.C", "AutoConfig": "own.C"})(folder)
    edited("tokenizer_config.json", auto_map={"AutoTokenizer": ["own.C", None]})(folder)
    safety.check_folder(folder)
    assert type(load_model(str(folder), torch.device("cpu"), torch.float32)).__name__ == "LlamaForCausalLM"
    load_tokenizer(str(folder))
    assert not (folder / "ran").exists()


def test_the_library_that_reads_data_of_a_hub_refuses_scripts(tmp_path):
    (tmp_path / "own.py").write_text(CODE.format(str(tmp_path / "ran")))
    with pytest.raises(RuntimeError, match="scripts are no longer supported"):
        datasets.load_dataset(str(tmp_path / "own.py"))
    assert not (tmp_path / "ran").exists()


def test_a_pickle_beside_safetensors_stays_closed_and_the_hub_is_not_asked_to_convert_one(folder, monkeypatch):
    (folder / "pytorch_model.bin").write_bytes(b"no pickle")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle is opened"))
    safety.check_folder(folder)
    load_model(str(folder), torch.device("cpu"), torch.float32)
    monkeypatch.delenv("DISABLE_SAFETENSORS_CONVERSION", raising=False)
    quiet()
    assert is_env_variable_true("DISABLE_SAFETENSORS_CONVERSION")


def test_a_text_with_markup_is_shown_as_text():
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    table = pd.DataFrame({evil: [evil]}, [evil])
    html = table._repr_html_()
    printed = v4.new_output("stream", name="stdout", text=evil)
    shown = v4.new_output("execute_result", data={"text/html": html, "text/plain": repr(table)})
    page, _ = HTMLExporter(embed_images=True).from_notebook_node(
        v4.new_notebook(cells=[v4.new_code_cell("", outputs=[printed, shown])])
    )
    assert "&lt;script&gt;" in html and page.count("&lt;script&gt;alert(1)") == 4
    assert "<script>alert" not in page and "<img src=x" not in page


def test_the_notebooks_show_texts_in_no_other_way():
    """A Styler, Markdown or HTML of their own would show markup as markup."""
    ways = re.compile(r"\.style\b|\b(HTML|Markdown|Javascript|to_html)\(|escape=False")
    for source in (ROOT / "notebooks" / "src").rglob("*.py"):
        assert not ways.search(source.read_text()), source.name


def test_limits_are_those_that_are_told():
    assert (safety.TEMPLATE_SECONDS, safety.TEMPLATE_BYTES) == (5, 2**30)
    assert (sizes.LARGEST, sizes.LONGEST, safety.LARGEST_TEXT) == (2**30, 2**26, 2**27)


PINNED = {
    "It asks the network for nothing": test_without_a_name_of_a_hub_no_address_is_asked_for,
    "It runs no code": (
        test_code_beside_a_model_that_transformers_knows_stays_unread,
        test_the_library_that_reads_data_of_a_hub_refuses_scripts,
    ),
    "It reads weights from safetensors": (
        test_a_pickle_beside_safetensors_stays_closed_and_the_hub_is_not_asked_to_convert_one
    ),
    "A folder or a GGUF file": (test_a_malformed_model_is_one_line, test_a_gguf_that_is_cut_or_lies_is_one_line),
    "A chat template": (test_a_malformed_model_is_one_line, test_limits_are_those_that_are_told),
    "A file of data": (test_malformed_data_are_one_line, test_limits_are_those_that_are_told),
    "A file beside the weights": (test_a_malformed_model_is_one_line, test_limits_are_those_that_are_told),
    "What is malformed": (test_a_malformed_model_is_one_line, test_malformed_data_are_one_line),
    "Markup in texts": (test_a_text_with_markup_is_shown_as_text, test_the_notebooks_show_texts_in_no_other_way),
}


def test_every_rule_that_is_told_has_a_test():
    rules = re.findall(r"^- (.+)$", SENTENCES, re.M)
    assert len(rules) == len(PINNED) and all(map(str.startswith, rules, PINNED))
