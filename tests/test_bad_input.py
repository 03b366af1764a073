"""A bad input is one line that says which file, key and value, and what was expected. Nothing starts or is written.

A row of the table is what is given and words of the line. It is tried in this process, where no kernel may start.
"""

import errno
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import jupytext
import nbformat
import pytest
import torch
from datasets import config
from huggingface_hub import constants
from typer.testing import CliRunner

from preflab import hub
from preflab.errors import BadInput
from preflab.running import notebooks
from preflab.running.cli import app
from preflab.running.reading import defaults
from preflab.running.records import made_in
from preflab.stages.given import check_model

SOURCES = Path(__file__).resolve().parents[1] / "notebooks" / "src"
FIRST, ROWS, LAST = "01_sequential_settings", "03_component_ablations", "04_coordinated_objectives"
LONG = "a" * 5000
FOLDER = None  # instead of a file's content


@dataclass
class Given:
    """A command line, and files of the checkout that stand there before."""

    words: list[str]
    files: dict[str, bytes | None] = field(default_factory=dict)


def yaml(text, name=FIRST):
    """A file of parameters, which is run."""
    content = text.encode() if isinstance(text, str) else text
    return Given(["run", name, "--profile", "quick"], {f"params/quick/{name}.yaml": content})


def p(*overrides, name=FIRST):
    """Words of the command line over the notebook's own values."""
    return Given(["run", name, *(word for value in overrides for word in ("-p", value))])


def command(*words, **files):
    """Any command line. Files by their name, `__` for a slash."""
    return Given(list(words), {name.replace("__", "/"): content for name, content in files.items()})


def rows(content, name="rows.jsonl"):
    """A file of pairs, which is reported on."""
    return Given(["pairs", f"files:{name}"], {name: content.encode() if isinstance(content, str) else content})


def variants(row, name=ROWS):
    """A row of parameters beside plain DPO."""
    return p(f"variants={{plain: {{method: dpo}}, mine: {row}}}", name=name)


def sft(source):
    """Dialogues to tune a model by name on."""
    words = p(f"base={{model: mine, sft_source: {source}}}").words
    return Given(words, {"mine/config.json": b"{}"})


def asked(source, content=b""):
    """AlpacaEval's prompts."""
    return Given(p(f"alpaca_eval={source}", name=LAST).words, {"a.json": content})


def checked(name, text, **files):
    """A file of parameters that is checked, not run."""
    given = command("check", f"{name}.yaml", **files)
    return Given(given.words, {f"{name}.yaml": text.encode(), **given.files})


BOMB = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
MERGE = "a: &a {x: 1}\n" + "".join(f"{b}: &{b} {{<<: [*{a}, *{a}]}}\n" for a, b in zip("abc", "bcd", strict=True))
PAIR = '{"prompt": "p", "chosen": "c", "rejected": "r"}\n'

YAML = [
    pytest.param(yaml(""), "None, expected a mapping", id="empty"),
    pytest.param(yaml("- 1\n- 2\n"), "[1, 2], expected a mapping", id="a list"),
    pytest.param(yaml("5"), "5, expected a mapping", id="a number"),
    pytest.param(yaml(None), "not readable as YAML: Is a directory", id="a folder"),
    pytest.param(yaml(b"\xff\xfe\xfa"), "not readable as YAML: not UTF-8", id="not UTF-8"),
    pytest.param(yaml(b"\xef\xbb\xbfseeds: all\n"), "seeds='all': input should be a valid list", id="BOM is no fault"),
    pytest.param(yaml("data: \x07\n"), "unacceptable character #x0007", id="control character"),
    pytest.param(yaml('name: "\\e[31m\\nred"\n'), r"name='\x1b[31m\nred': string should match", id="escape sequence"),
    pytest.param(yaml("---\nseeds: [0]\n---\nseeds: [1]\n"), "expected a single document", id="two documents"),
    pytest.param(yaml("seeds: [0]\nseeds: [1]\n"), "line 2: key 'seeds' is given twice", id="key twice"),
    pytest.param(yaml("dpo: {beta: 0.1, beta: 0.2}\n"), "line 1: key 'beta' is given twice", id="key of a section"),
    pytest.param(yaml("\n1: 2\n"), "line 2: key 1, expected text", id="key is a number"),
    pytest.param(yaml("seeds:\n - 2020-13-45\n"), "line 2: '2020-13-45', expected a YAML timestamp", id="no date"),
    pytest.param(yaml("seeds: 2020-12-05\n"), "seeds=datetime.date(2020, 12, 5): input should be", id="date"),
    pytest.param(yaml("train_pairs: !!int abc\n"), "line 1: 'abc', expected a YAML int", id="!!int"),
    pytest.param(yaml('train_pairs: !!int ""\n'), "line 1: '', expected a YAML int", id="!!int of nothing"),
    pytest.param(yaml("show_texts: !!bool abc\n"), "line 1: 'abc', expected a YAML bool", id="!!bool"),
    pytest.param(yaml("data: !!timestamp abc\n"), "line 1: 'abc', expected a YAML timestamp", id="!!timestamp"),
    pytest.param(yaml("data: !!float abc\n"), "line 1: 'abc', expected a YAML float", id="!!float"),
    pytest.param(yaml("data: !!python/name:os.system\n"), "could not determine a constructor", id="python tag"),
    pytest.param(yaml(f"train_pairs: {'9' * 5000}\n"), "line 1: '9999", id="5000 digits"),
    pytest.param(yaml(f"train_pairs: 0x{'f' * 5000}\n"), "train_pairs=<int>: ", id="5000 hexadecimal digits"),
    pytest.param(yaml(f"data: {'[' * 2000}"), "values in values in values, expected a few", id="2000 brackets"),
    pytest.param(yaml("".join(f"{' ' * n}a:\n" for n in range(2000))), "values in values in values", id="2000 levels"),
    pytest.param(yaml("train_pairs: 1:30\n"), "line 1: '1:30', expected a decimal number", id="1:30 is not 90"),
    pytest.param(yaml("dpo: {beta: 1:30.5}\n"), "line 1: '1:30.5', expected a decimal number", id="1:30.5 is not 90.5"),
    pytest.param(yaml("seeds: [010]\n"), "line 1: '010', expected a decimal number", id="010 is not 8"),
    pytest.param(yaml(BOMB), "line 2: alias *a, expected the value itself", id="alias bomb"),
    pytest.param(yaml(MERGE), "line 2: alias *a, expected the value itself", id="merge bomb"),
    pytest.param(yaml("<<: {seeds: [0]}\n"), "could not determine a constructor", id="merge key"),
    pytest.param(yaml("a: &a [*a]\n"), "line 1: alias *a, expected the value itself", id="a list in itself"),
]

VALUES = [
    pytest.param(p("seeds=1:30"), "-p seeds=1:30: line 1: '1:30', expected a decimal number", id="1:30"),
    pytest.param(p(f"data=[{'x, ' * 9**4}]"), "data=['x', 'x'", id="a long list"),
    pytest.param(p(f"{LONG}=1"), "no such parameter", id="a long key"),
    pytest.param(p("\x1b[31m=1"), r"-p: \x1b[31m=1: no such parameter", id="a key with control characters"),
    pytest.param(p("dpo={beta: .nan}"), "dpo.beta=nan: input should be a finite number", id="NaN"),
    pytest.param(p("dpo={beta: -.inf}"), "dpo.beta=-inf: input should be a finite number", id="-inf"),
    pytest.param(p("train_pairs=-5"), "train_pairs=-5: input should be greater than or equal to 1", id="negative"),
    pytest.param(p("lora={rank: -1}"), "lora.rank=-1: input should be greater than or equal to 0", id="negative rank"),
    pytest.param(p("train_pairs=true"), "train_pairs=True: input should be a valid integer", id="bool for int"),
    pytest.param(p("seeds=[yes]"), "seeds.0=True: input should be a valid integer", id="yes in a list"),
    pytest.param(p("dpo={bet: 1.0}"), "dpo.bet=1.0: no such parameter", id="unknown key of a section"),
    pytest.param(p("seeds=[2147483648]"), "seeds.0=2147483648: input should be less than", id="seed of 2^31"),
    pytest.param(p("base={seed: 2147483648}"), "base.seed=2147483648: input should be less", id="base seed of 2^31"),
    pytest.param(p(f"train_pairs={10**18}"), "input should be less than or equal to 10000000", id="10^18 pairs"),
    pytest.param(p(f"resamples={10**18}"), "input should be less than or equal to 10000000", id="10^18 draws"),
    pytest.param(p(f"lora={{rank: {10**18}}}"), "less than or equal to 10000000", id="rank 10^18"),
    pytest.param(p(f"base={{layers: {10**18}}}"), "less than or equal to 10000000", id="10^18 layers"),
    pytest.param(p(f"base={{sft: {{steps: {10**18}}}}}"), "less than or equal to 10000000", id="10^18 steps"),
    pytest.param(p("train_pairs=100000"), "train_pairs=100000: world:", id="more pairs than the world has"),
    pytest.param(p("test_pairs=5000"), "test_pairs=5000: world:", id="more held-out pairs than the world has"),
    pytest.param(
        p("settings={a: [world:conflict, harmless, harmless]}", "train_pairs=1500"),
        "train_pairs=1500 for each stage: world:conflict, harmless",
        id="more pairs than it has for both stages",
    ),
    pytest.param(p("settings={a: [world:nope, b, c]}"), "world:nope: no such world", id="no such world"),
    pytest.param(p("settings={a: [world:safety, safer, c]}"), "objective 'c' does not exist", id="no such objective"),
    pytest.param(p("final_source=world:safety", "final_objective=x", name=ROWS), "objective 'x'", id="final objective"),
    pytest.param(p("hardware={device: gpu}"), "hardware.device='gpu': input should be", id="no device"),
    pytest.param(p("hardware={device: cuda}"), "device='cuda': not on this machine", id="no such device"),
    pytest.param(
        variants("{method: dpo, rule: equal_weights, budget: 0.001}"), "budget=0.001: no update of", id="budget"
    ),
    pytest.param(variants("{method: dpo, rule: equal_weights, until: 0.0}"), "until=0.0: input should be", id="until"),
    pytest.param(
        p("variants={a: {method: ppo}, b: {method: ppo, rule: equal_weights, budget: 0.001}}", name=ROWS),
        "variants.b: budget=0.001: no update of 10",
        id="budget of iterations",
    ),
    pytest.param(
        p("variants={DPO: {method: dpo, budget: 0.001}}", name=LAST), "variants.DPO: budget=0.001", id="budget in 04"
    ),
    pytest.param(p("settings={a: [files:none.jsonl, b, c]}"), "none.jsonl: no such path", id="no such file"),
    pytest.param(
        p("settings={a: [files:x, b, c]}", "data=~nouser"), "/~nouser/x: no such path", id="the home of nobody"
    ),
    pytest.param(p(f"settings={{a: [files:{LONG}, b, c]}}"), "no such path", id="a path that is too long"),
    pytest.param(p('settings={a: ["files:a\\0b", b, c]}'), "no such path", id="a path with a null"),
    pytest.param(p("settings={a: [hub:a/b, c, d]}"), "hub:a/b: the hub cannot be reached", id="no network"),
]

MODEL = "base={model: org/none}"
BENCH = "90_benchmarks"

TEXTS_AND_MODELS = [
    pytest.param(p("base={model: ./none}"), "base.model='./none': no such folder or file at", id="no such model"),
    pytest.param(
        p("base={model: none.gguf}"), "base.model='none.gguf': no such folder or file", id="no such GGUF file"
    ),
    pytest.param(p("base={model: models/smollm2}"), "run: preflab model smollm2", id="a model that can be got"),
    pytest.param(p("base={model: ~nouser/x}"), "model='~nouser/x': no such folder", id="a model in the home of nobody"),
    pytest.param(p('base={model: "a\\0b"}'), r"base.model='a\x00b': no such folder", id="a model with a null"),
    pytest.param(p(f"base={{model: {LONG}}}"), "base.model='aaaaaaa", id="a model that is too long"),
    pytest.param(p("base={model: params}"), "base.model='params': no config.json in", id="a folder without a model"),
    pytest.param(
        p(MODEL), "base.model='org/none': no such folder, and the hub cannot be", id="a model without network"
    ),
    pytest.param(p("base={model: a b}"), "base.model='a b': no such folder", id="a model that no hub can have"),
    pytest.param(p(MODEL, name=BENCH), "base.model='org/none': no such folder, and the hub", id="a model to time"),
    pytest.param(p("source=files:none.jsonl", name=BENCH), "none.jsonl: no such path", id="no such file to time"),
    pytest.param(p("source=files:none.jsonl", name=ROWS), "none.jsonl: no such path", id="no such file in 03"),
    pytest.param(
        p("final_source=files:none.jsonl", "final_objective=b", name=ROWS),
        "none.jsonl: no such path",
        id="no final file",
    ),
    pytest.param(
        p("final_source=hub:a/b", "final_objective=b", name=ROWS), "hub:a/b: the hub cannot", id="no final on the hub"
    ),
    pytest.param(sft("files:none"), "base.sft_source: files:/", id="no such dialogues"),
    pytest.param(sft("hub:a/b"), "base.sft_source: hub:a/b: the hub cannot be reached", id="dialogues without network"),
    pytest.param(sft("world:safety"), "base.sft_source='world:safety': string should match", id="dialogues of a world"),
    pytest.param(asked('"files:"'), "alpaca_eval='files:': string should match", id="questions of nothing"),
    pytest.param(p('data=""', "source=files:none.jsonl", name=ROWS), "none.jsonl: no such path", id="data of nothing"),
    pytest.param(asked("files:none.json"), "none.json: no such path; expected a file", id="no such questions"),
    pytest.param(asked("files:~nouser/a.json"), "/~nouser/a.json: no such path", id="questions of nobody"),
    pytest.param(asked('"files:a\\0b"'), "no such path; expected a file", id="questions with a null"),
    pytest.param(asked("files:a.json", b"[]"), "a.json: no rows, expected AlpacaEval's prompts", id="no questions"),
    pytest.param(asked("files:a.json", b'[{"a": 1}]'), "a.json: row 1: key 'instruction'", id="no instruction"),
    pytest.param(
        asked("files:a.json", FOLDER), "a.json: Is a directory; expected a readable", id="a folder of questions"
    ),
    pytest.param(asked("hub:a/b"), "hub:a/b: alpaca_eval.json is out of reach", id="questions without network"),
    pytest.param(asked("hub:a b"), "hub:a b: alpaca_eval.json is out of reach", id="questions that no hub can have"),
    pytest.param(asked("world:safety"), "alpaca_eval='world:safety': string should match", id="questions of a world"),
    pytest.param(checked(FIRST, "base: {model: ./none}"), "base.model='./none': no such folder or", id="check: model"),
    pytest.param(
        checked(FIRST, "base: {model: models, sft_source: files:none}", **{"models/config.json": b"{}"}),
        "base.sft_source: files:/",
        id="check: dialogues",
    ),
    pytest.param(checked(LAST, "alpaca_eval: files:none.json"), "none.json: no such path", id="check: questions"),
    pytest.param(checked(FIRST, "settings: {a: [files:none, b, c]}"), "none: no such path", id="check: pairs"),
]

ROWS_OF_FILES = [
    pytest.param(
        rows(PAIR + "\n" + '{"a": ' + "9" * 5000 + "}\n"), "rows.jsonl: line 3: a number of 5000", id="digits"
    ),
    pytest.param(rows(PAIR + "[" * 100_000), "rows.jsonl: line 2: brackets in brackets", id="brackets"),
    pytest.param(
        rows('[{"a": "' + "9" * 5000 + '"},\n\n' + "9" * 5000 + "]", "a.json"),
        "a.json: line 3: a number",
        id="in a list",
    ),
    pytest.param(rows("[\n\n" + "[" * 100_000, "a.json"), "a.json: line 3: brackets in", id="brackets in a list"),
    pytest.param(rows(PAIR + "{"), "rows.jsonl: line 2, column 2: ", id="half a row"),
    pytest.param(rows("[{},\n{,}]", "a.json"), "a.json: line 2, column 2: ", id="half a row of a list"),
    pytest.param(rows(""), "is empty; expected at least one row", id="an empty file"),
    pytest.param(rows("5\n"), "row 1 is a int; expected an object", id="a row is a number"),
    pytest.param(rows("5", "a.json"), "holds a int; expected a list", id="a number"),
    pytest.param(rows(b"\xff\xfe"), "not UTF-8", id="not UTF-8"),
    pytest.param(rows(b"PAR1", "a.parquet"), "truncated or corrupt; expected a Parquet file", id="no Parquet"),
    pytest.param(rows(b"\x1f\x8b", "a.jsonl.gz"), "truncated or corrupt; expected a gzip file", id="no gzip"),
    pytest.param(rows(PAIR, "a.csv"), "unsupported extension", id="another kind of file"),
    pytest.param(
        rows('{"prompt": "p", "response": "r", "helpfulness": ' + "9" * 400 + "}\n"),
        "row 1: key 'helpfulness' is 9999",
        id="a rating beyond any float",
    ),
    pytest.param(rows('{"prompt": "p", "response": "r"}\n'), "no ratings of the rated format", id="no ratings"),
    pytest.param(command("pairs", "files:~nouser/x.jsonl"), "files:~nouser/x.jsonl: no such path", id="home of nobody"),
    pytest.param(command("pairs", f"files:{LONG}"), "no such path", id="a path that is too long"),
    pytest.param(command("pairs", "files:."), "no data in this folder", id="a folder without data"),
    pytest.param(command("pairs", "nope:x"), "expected world:NAME, hub:REPO or files:PATH", id="no such kind"),
    pytest.param(command("pairs", "world:nope"), "no such world", id="no such world"),
    pytest.param(command("pairs", "world:safety", "--objective", "x"), "objective is 'x'", id="no such objective"),
    pytest.param(command("pairs", "hub:a/b"), "hub:a/b: the hub cannot be reached", id="no network"),
]

PLACES = [
    pytest.param(command("run", FIRST, "--profile", "params/quick"), "no such profile", id="a profile's path"),
    pytest.param(command("run", FIRST, "--profile", LONG), "no such profile in params/", id="a long profile"),
    pytest.param(command("run", LONG), "no such file, expected one of", id="a long name"),
    pytest.param(command("check", LONG), "no notebook of this name", id="a long path"),
    pytest.param(command("check", f"{FIRST}{LONG}.yaml"), "File name too long", id="a long path of a notebook"),
    pytest.param(command("check", f"~nouser/{FIRST}.yaml"), "no such file", id="the home of nobody"),
    pytest.param(command("run", FIRST, results=b""), "results folder", id="results is a file"),
    pytest.param(command("run", FIRST, results__default=b""), "not writable (File exists)", id="profile is a file"),
    pytest.param(
        Given(["run", FIRST], {f"results/default/{FIRST}": b""}), "is a file, expected a folder", id="result is a file"
    ),
    pytest.param(command("cache", "check", results__cache=b""), "is a file, expected a folder", id="cache is a file"),
    pytest.param(command("cache", "clear", results__cache=b""), "is a file, expected a folder", id="clear a file"),
    pytest.param(
        Given(["cache", "check"], {"results/cache/Base-1": b""}), "1 of 1 entries are not what", id="entry is a file"
    ),
    pytest.param(
        Given(["cache", "check"], {"results/cache/Base-1/manifest.json": b"[" * 9**6}),
        "1 of 1 entries are not what was stored",
        id="a manifest of brackets",
    ),
    pytest.param(
        Given(["run", FIRST], {f"notebooks/{FIRST}.ipynb": b"{"}), "not readable as a notebook: ", id="no JSON"
    ),
    pytest.param(
        Given(["run", FIRST], {f"notebooks/{FIRST}.ipynb": b"[1]"}), "not readable as a notebook: ", id="no notebook"
    ),
    pytest.param(
        Given(["run", FIRST], {f"notebooks/{FIRST}.ipynb": b'{"cells": [], "nbformat": 4, "metadata": {}}'}),
        "no cell with the tag 'parameters'",
        id="no parameters",
    ),
    pytest.param(
        Given(["run", FIRST], {f"notebooks/{FIRST}.ipynb": FOLDER}), ".ipynb: Is a directory", id="notebook is a folder"
    ),
    pytest.param(Given(["run", FIRST], {"notebooks": b""}), "expected one of: none found", id="notebooks is a file"),
    pytest.param(
        Given(["publish", "--profile", "quick"], {"params": b""}), "no such profile in params/", id="params is a file"
    ),
    pytest.param(
        Given(["render", FIRST], {f"notebooks/src/{FIRST}.py": b"\xff"}), "not UTF-8", id="a source that is no text"
    ),
]


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout whose notebooks have a parameters cell alone, on a machine without GPU."""
    (tmp_path / "notebooks" / "src").mkdir(parents=True)
    (tmp_path / "params" / "quick").mkdir(parents=True)
    (tmp_path / "params" / "quick" / f"{FIRST}.yaml").write_text("seeds: [0]\n")
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "preflab"\n')
    for name, text in CELLS.items():
        (tmp_path / "notebooks" / "src" / f"{name}.py").write_text(text)
        nbformat.write(jupytext.reads(text, "py:percent"), tmp_path / "notebooks" / f"{name}.ipynb")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(notebooks, "_run_papermill", no_kernel)
    return tmp_path


CELLS = {
    name: '# %% tags=["parameters"]\n'
    + "".join(f"{key} = {value!r}\n" for key, value in defaults(SOURCES / f"{name}.py").items())
    for name in (FIRST, ROWS, LAST, BENCH)
}


def no_kernel(*_):
    raise AssertionError("a kernel starts")


def tree(root):
    """Every file and folder with its content."""
    return {str(f.relative_to(root)): f.read_bytes() if f.is_file() else None for f in root.rglob("*")}


def put(file, content):
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.is_file():
        file.unlink()
    elif file.is_dir():
        file.rename(file.with_name("moved"))
    file.mkdir() if content is FOLDER else file.write_bytes(content)


@pytest.mark.parametrize(("given", "words"), [*YAML, *VALUES, *TEXTS_AND_MODELS, *ROWS_OF_FILES, *PLACES])
def test_one_line_exit_code_2_and_nothing_written(given, words, checkout):
    for name, content in given.files.items():
        put(checkout / name, content)
    before = tree(checkout)
    result = CliRunner().invoke(app, given.words)
    assert result.exit_code == 2, result.exception or result.output
    assert words in result.stderr
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert len(result.stderr) <= 301 and result.stderr[:-1].isprintable()
    assert tree(checkout) == before


# --- the disk -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ename", "evalue"),
    [
        ("OSError", "[Errno 28] No space left on device: '/x/model'"),
        ("OSError", "[Errno 122] Disk quota exceeded: '/x/model'"),
        ("SafetensorError", "Error while serializing: I/O error: No space left on device (os error 28)"),
        ("RuntimeError", "worker says\n[Errno 27] File too large"),
    ],
)
def test_a_disk_that_is_full_in_a_kernel_is_bad_input_whatever_the_library_calls_it(ename, evalue, tmp_path):
    with pytest.raises(BadInput, match="make room and give the same command again") as error:
        notebooks._explain(ename, evalue, tmp_path / "output.ipynb", tmp_path / "results")
    assert str(error.value).startswith(evalue.splitlines()[-1]) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("ename", "evalue"),
    [
        ("MemoryError", "x"),
        ("OutOfMemoryError", "CUDA out of memory"),
        ("_ArrayMemoryError", "Unable to allocate 7 EiB"),
        ("RuntimeError", "DefaultCPUAllocator: can't allocate memory: you tried to allocate 7 bytes"),
    ],
)
def test_every_librarys_lack_of_memory_is_one(ename, evalue, tmp_path):
    with pytest.raises(MemoryError):
        notebooks._explain(ename, evalue, tmp_path / "output.ipynb", tmp_path / "results")


def test_a_killed_worker_is_told_in_plain_words(tmp_path):
    (tmp_path / "output.ipynb").touch()
    with pytest.raises(notebooks.NotebookFailed, match=r"^BrokenProcessPool: a worker process was killed; out of mem"):
        notebooks._explain("BrokenProcessPool", "A process in the", tmp_path / "output.ipynb", tmp_path / "results")


def results_of_before(checkout):
    folder = checkout / "results" / "default" / FIRST
    folder.mkdir(parents=True)
    for name in ("metrics.json", "provenance.json", "notebook.ipynb"):
        (folder / name).write_text(f"old {name}")


def leaves_results(source, output, given, kernel, folder, show):
    """What a whole run leaves, without a kernel."""
    made = made_in(output.parent)
    made.mkdir()
    for name in ("metrics.json", "provenance.json"):
        (made / name).write_text('{"claims": []}')
    output.write_bytes(source.read_bytes())


@pytest.mark.parametrize("where", ["nbformat.write", "preflab.running.notebooks.write_json", "os.replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_is_full_is_one_line_and_leaves_the_old_results_whole(where, number, checkout, monkeypatch):
    """Before the kernel, when results are signed, and when they take their place."""

    def full(*_, **__):
        raise OSError(number, os.strerror(number), "/x")

    results_of_before(checkout)
    before = tree(checkout)
    monkeypatch.setattr(notebooks, "_run_papermill", leaves_results)
    monkeypatch.setattr(where, full)
    result = CliRunner().invoke(app, ["run", FIRST])
    assert (result.exit_code, result.stderr) == (
        2,
        f"error: [Errno {number}] {os.strerror(number)}: '/x'; "
        "make room and give the same command again; what is finished is kept\n",
    )
    assert tree(checkout) == before


RUN_PAPERMILL = notebooks._run_papermill


def test_a_disk_that_is_full_in_a_real_kernel(checkout, monkeypatch):
    """A limit on the size of files stands for it."""
    results_of_before(checkout)
    notebook = nbformat.read(checkout / "notebooks" / f"{FIRST}.ipynb", as_version=4)
    cell = (
        "import resource, numpy\nfrom safetensors.numpy import save_file\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))\n"
        "save_file({'x': numpy.zeros(10_000)}, 'weights')"
    )
    notebook.cells.append(nbformat.v4.new_code_cell(cell))
    nbformat.write(notebook, checkout / "notebooks" / f"{FIRST}.ipynb")
    before = tree(checkout)
    monkeypatch.setattr(notebooks, "_run_papermill", RUN_PAPERMILL)
    result = CliRunner().invoke(app, ["run", FIRST])
    assert result.exit_code == 2 and result.stderr.count("\n") == 1, result.stderr
    assert "File too large" in result.stderr and "make room" in result.stderr
    (checkout / "weights").unlink(missing_ok=True)
    assert tree(checkout) == before


def test_questions_of_the_command_line_begin_in_its_folder_and_those_of_a_file_at_the_checkout(checkout, monkeypatch):
    put(checkout / "own" / "a.json", b'[{"instruction": "x"}]')
    put(checkout / "params" / "quick" / f"{LAST}.yaml", b"alpaca_eval: files:own/a.json\n")
    given = []
    monkeypatch.setattr(notebooks, "_run_papermill", lambda *args: given.append(args[2]) or leaves_results(*args))
    monkeypatch.chdir(checkout / "own")
    for words in (["-p", "alpaca_eval=files:a.json"], ["--profile", "quick"]):
        result = CliRunner().invoke(app, ["run", LAST, *words])
        assert result.exit_code == 0, result.stderr
    assert [values["alpaca_eval"] for values in given] == ["files:own/a.json"] * 2


def test_a_bad_input_in_a_process_of_its_own(checkout):
    """Libraries that write to stderr when they are imported or fail would show here alone."""
    put(checkout / "params" / "quick" / f"{FIRST}.yaml", b"train_pairs: 1:30\n")
    words = [sys.executable, "-m", "preflab.running.cli", "run", FIRST, "--profile", "quick"]
    done = subprocess.run(words, cwd=checkout, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1 and "line 1: '1:30', expected a decimal number" in done.stderr


def test_results_take_the_place_of_the_old_ones(checkout, monkeypatch):
    results_of_before(checkout)
    monkeypatch.setattr(notebooks, "_run_papermill", leaves_results)
    result = CliRunner().invoke(app, ["run", FIRST])
    assert result.exit_code == 0, result.stderr
    folder = checkout / "results" / "default" / FIRST
    assert not any("old" in file.read_text() for file in folder.iterdir()) and len(list(folder.iterdir())) == 3
    assert len(list(folder.parent.iterdir())) == 1


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "{}", '{"claims": [1]}', '{"claims": [{"id": "S1"}]}'])
def test_results_that_are_not_what_a_run_writes_are_named(content, checkout, monkeypatch):
    folder = checkout / "results" / "default" / FIRST
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(content)
    with pytest.raises(BadInput, match=rf"^{folder / 'metrics.json'}: ") as error:
        notebooks.read_claims(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000])
def test_a_broken_provenance_is_not_up_to_date(content, tmp_path):
    (tmp_path / "provenance.json").write_bytes(content)
    assert not notebooks.up_to_date(nbformat.v4.new_notebook(), {}, tmp_path)


def test_figures_that_cannot_be_written_leave_the_published_ones_whole(checkout, monkeypatch):
    folder, published = checkout / "results" / "quick" / FIRST, checkout / "figures" / "quick" / FIRST
    for parent in (folder, published):
        parent.mkdir(parents=True)
        (parent / "metrics.json").write_text(str(parent))

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/x")

    before = tree(checkout)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.copyfile", full)
        result = CliRunner().invoke(app, ["publish", "--profile", "quick"])
    assert result.exit_code == 2 and "No space left on device: '/x'; make room" in result.stderr
    assert tree(checkout) == before
    assert CliRunner().invoke(app, ["publish", "--profile", "quick"]).exit_code == 0
    assert (published / "metrics.json").read_text() == str(folder) and len(list(published.parent.iterdir())) == 1


# --- the hub --------------------------------------------------------------------------------------


ANSWERS = hub._answers  # as it is without this folder's fixture


def test_a_hub_that_says_nothing_is_given_up_on(monkeypatch):
    class Silent:
        def head(self, *_, **__):
            time.sleep(60)

    monkeypatch.setattr(hub, "_answers", ANSWERS)
    monkeypatch.setattr(hub, "SECONDS", 0.2)
    monkeypatch.setattr(hub, "get_session", Silent)
    monkeypatch.setattr(hub, "_asked_to_stay_off", False)
    for module in (constants, config):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)
    began = time.monotonic()
    assert not hub.ask_hub_once() and time.monotonic() - began < 2
    assert constants.HF_HUB_OFFLINE and config.HF_HUB_OFFLINE

    monkeypatch.setattr(Silent, "head", lambda *_, **__: "an answer")
    assert hub.ask_hub_once()  # the network is back
    assert not constants.HF_HUB_OFFLINE and not config.HF_HUB_OFFLINE

    monkeypatch.setattr(hub, "_asked_to_stay_off", True)  # HF_HUB_OFFLINE=1
    assert not hub.ask_hub_once() and constants.HF_HUB_OFFLINE


def test_a_model_in_the_hubs_cache_needs_no_network(tmp_path, monkeypatch):
    model = tmp_path / "models--org--mine"
    put(model / "refs" / "main", b"abc")
    put(model / "snapshots" / "abc" / "config.json", b"{}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    check_model("org/mine", None)
    check_model("org/mine", "abc")
    with pytest.raises(BadInput, match=r"base\.model='org/mine': no such folder, and the hub cannot be reached"):
        check_model("org/mine", "another")
