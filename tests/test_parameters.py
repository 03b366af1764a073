"""Parameters are checked before anything starts, and every complaint is one line that helps."""

import json
import math
import re
from dataclasses import MISSING, asdict, fields, is_dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest

from preflab.errors import BadInput
from preflab.experiments import EXPERIMENTS
from preflab.experiments.experiment import Parameters, laid_over
from preflab.experiments.sequential import Sequential
from preflab.experiments.variants import Contender, Variant
from preflab.methods import METHODS
from preflab.models import Lora
from preflab.rules import RULES, Until, WithoutNegative
from preflab.running.reading import defaults, parse_yaml, read_yaml, resolve
from preflab.running.run import Run
from preflab.training.sft import SFTSettings

SOURCES = Path(__file__).resolve().parents[1] / "notebooks" / "src"
NOTEBOOK = SOURCES / "01_sequential_settings.py"
ABLATIONS = SOURCES / "03_component_ablations.py"
DEFAULTS = defaults(NOTEBOOK)


def complaint(call, *args):
    """The message of the BadInput that a call raises: one line."""
    with pytest.raises(BadInput) as caught:
        call(*args)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    return str(caught.value)


def given(text, tmp_path):
    path = tmp_path / "01_sequential_settings.yaml"
    path.write_text(text)
    return path


def sections(kind):
    return {name: field.default for name, field in kind.model_fields.items() if is_dataclass(field.default)}


# --- defaults and sections ------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_committed_notebooks_were_run_with_the_values_that_are_in_force(name, capsys):
    """Every default of every section, as the notebook printed it, in any order of sections."""
    notebook = nbformat.read(SOURCES.parent / f"{name}.ipynb", as_version=4)
    printed = [o.text for cell in notebook.cells for o in cell.get("outputs", []) if o.output_type == "stream"]
    (committed,) = (text for text in printed if text.startswith("versions"))
    Run.overview(SimpleNamespace(parameters=resolve(SOURCES / f"{name}.py", {}, "x"), device="cpu"))
    in_force, shown = (by_section(text) for text in (capsys.readouterr().out, committed))
    assert in_force == shown and "hardware" in shown


def by_section(overview):
    """What an overview says of parameters: section -> words. How long lines are broken does not matter."""
    lines = [(line[:17].strip(), line[17:].strip()) for line in overview.splitlines()]
    found, section = {}, None
    for name, words in lines:
        section = name or section
        found[section] = f"{found[section]} {words}" if not name else words
    return {name: words for name, words in found.items() if name not in ("versions", "device")}


NOT_SHOWN = {
    "00_start_here": {"data", "hardware"},  # a world has no files; a CPU is enough
    "05_mechanism": {"prompts", "stage2_reference"},  # notebook 01's, which 05 holds at one value
    "06_forgetting_map": {"test_share"},  # of files; 06 has worlds alone
}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_defaults_are_valid_and_what_is_given_wins(name):
    own, kind = defaults(SOURCES / f"{name}.py"), EXPERIMENTS[name]
    resolved = resolve(SOURCES / f"{name}.py", {}, "x")
    for key, value in own.items():
        found = getattr(resolved, key)
        if key in sections(kind):
            assert found == laid_over(sections(kind)[key], value, key)
        elif key == "variants":
            assert list(found) == list(value) and all(found[n].method == value[n]["method"] for n in value)
        else:
            assert found == value, key
    assert set(own) | NOT_SHOWN.get(name, set()) == set(kind.model_fields)
    changed = resolve(SOURCES / f"{name}.py", {"name": f"{name}_mine"}, "x")
    assert changed == resolved.model_copy(update={"name": f"{name}_mine"}) != resolved


def test_a_section_is_laid_over_its_defaults_at_any_depth():
    p = resolve(NOTEBOOK, {"base": {"hidden_size": 96, "sft": {"steps": 400}}, "lora": {"rank": 4}}, "x")
    default = resolve(NOTEBOOK, {}, "x")
    assert p.base == replace(default.base, hidden_size=96, sft=replace(default.base.sft, steps=400))
    assert p.base.sft == SFTSettings(steps=400) and p.lora == Lora(rank=4, alpha=16)
    assert (p.dpo, p.pair_training, p.hardware) == (default.dpo, default.pair_training, default.hardware)


def test_a_notebooks_own_defaults_of_a_section_are_what_it_is_laid_over():
    """Paper S has beta 0.3, the longer language of 02 a KL coefficient of 0.1: of their classes alone."""
    assert resolve(NOTEBOOK, {"dpo": {}}, "x").dpo.beta == 0.3
    p = resolve(SOURCES / "02_g_dynamics.py", {"ppo": {"clip": 0.3}}, "x")
    assert (p.ppo.kl_coefficient, p.ppo.clip) == (0.1, 0.3)


def test_a_section_may_be_given_as_settings():
    assert laid_over(Lora(), {}, "lora") == Lora()
    values = {**DEFAULTS, "lora": Lora(rank=3)}
    assert Sequential.checked(values, "x").lora == Lora(rank=3)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"learning_rat": 0.1}, r"learning_rat=0.1: no such parameter, expected one of: base, .*\bpair_training\b"),
        ({"test_pairs": "200"}, r"test_pairs='200': input should be a valid integer"),
        ({"train_pairs": True}, r"train_pairs=True: input should be a valid integer"),
        ({"train_pairs": 8.0}, r"train_pairs=8.0: input should be a valid integer"),
        ({"test_pairs": 7}, r"test_pairs=7: input should be greater than or equal to 8"),
        ({"seeds": []}, r"seeds=\[\]: list should have at least 1 item"),
        ({"seeds": [0, -1]}, r"seeds.1=-1: input should be greater than or equal to 0"),
        ({"seeds": [2**31]}, r"seeds.0=2147483648: input should be less than or equal to 2147483647"),
        ({"seeds": [0.0]}, r"seeds.0=0.0: input should be a valid integer"),
        ({"stage2_reference": "stage2"}, r"stage2_reference='stage2': input should be 'base' or 'stage1'"),
        ({"profile": "../elsewhere"}, r"profile='../elsewhere': string should match pattern"),
        ({"settings": {"a": ["world:conflict", "helpful"]}}, r"settings.a=.*at least 3 items"),
        ({1: 2}, r"keys should be strings"),
        # in sections
        ({"dpo": {"beta": "0.1"}}, r" dpo\.beta='0.1': input should be a valid number"),
        ({"dpo": {"beta": True}}, r" dpo\.beta=True: input should be a valid number"),
        ({"dpo": {"beta": math.nan}}, r" dpo\.beta=nan: input should be a finite number"),
        ({"dpo": {"beta": 0.0}}, r" dpo\.beta=0.0: input should be greater than 0"),
        ({"dpo": {"bet": 0.1}}, r" dpo\.bet=0.1: no such parameter, expected one of: beta$"),
        ({"dpo": 0.1}, r" dpo=0.1: expected a section, which maps names to values$"),
        ({"dpo": None}, r" dpo=None: expected a section, which maps names to values$"),
        ({"dpo": [["beta", 0.1]]}, r" dpo=\[\['beta', 0.1\]\]: expected a section"),
        ({"pair_training": {"batch_size": True}}, r" pair_training\.batch_size=True: input should be a valid integer"),
        ({"pair_training": {"batch_size": 8.0}}, r" pair_training\.batch_size=8.0: input should be a valid integer"),
        ({"pair_training": {"batch_size": 0}}, r" pair_training\.batch_size=0: input should be greater than or equal"),
        ({"pair_training": {"learning_rate": math.inf}}, r" pair_training\.learning_rate=inf: input should be a fin"),
        ({"pair_training": {"warmup_share": 1.0}}, r" pair_training\.warmup_share=1.0: input should be less than 1"),
        ({"lora": {"rank": -1}}, r" lora\.rank=-1: input should be greater than or equal to 0"),
        ({"lora": {"ranks": 8}}, r" lora\.ranks=8: no such parameter, expected one of: rank, alpha, dropout$"),
        ({"hardware": {"device": "gpu"}}, r" hardware\.device='gpu': input should be 'auto', 'cpu', 'cuda' or 'mps'"),
        ({"hardware": {1: 2}}, r" hardware\.1=2: no such parameter"),
        ({"base": {"sft": {"steps": 0}}}, r" base\.sft\.steps=0: input should be greater than or equal to 1"),
        ({"base": {"sft": {"step": 9}}}, r" base\.sft\.step=9: no such parameter, expected one of: steps, batch_size,"),
        ({"base": {"sft": 9}}, r" base\.sft=9: expected a section"),
        ({"base": {"seed": 2**31}}, r" base\.seed=2147483648: input should be less than or equal to 2147483647"),
        ({"base": {"sft_source": "chat"}}, r" base\.sft_source='chat': string should match pattern"),
    ],
)  # fmt: skip
def test_one_parameter_wrong(values, expected):
    message = complaint(resolve, NOTEBOOK, values, "my.yaml")
    assert message.startswith("my.yaml: ")
    assert re.search(expected, message)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"base": {"hidden_size": 64, "heads": 3}}, r" base\.hidden_size=64: expected a multiple of heads=3$"),
        (
            {"pair_training": {"batch_size": 64}, "train_pairs": 32},
            r" pair_training\.batch_size=64: expected at most train_pairs=32",
        ),
        ({"seeds": [1, 1]}, r" seeds=\[1, 1\]: expected different numbers"),
        ({"settings": {"a": ["conflict", "x", "y"]}}, r" settings\.a='conflict': expected world:NAME, hub:REPO"),
        ({"settings": {"a": ["world:conflict", "x", "x"]}}, r"world:conflict: objective 'x' does not exist"),
        ({"base": {"sft_source": "files:x"}}, r" base\.sft_source='files:x': expected none for base\.model='tiny'"),
    ],
)  # fmt: skip
def test_parameters_that_cannot_go_together(values, expected):
    message = complaint(resolve, NOTEBOOK, values, "my.yaml")
    assert message.startswith("my.yaml: ") and re.search(expected, message)


def test_every_field_of_every_section_of_every_notebook_refuses_another_type_by_its_name():
    for name, kind in EXPERIMENTS.items():
        for section, default in sections(kind).items():
            for field in fields(default):
                wrong = {section: {field.name: {"a": "mapping"}}}
                message = complaint(resolve, SOURCES / f"{name}.py", wrong, "my.yaml")
                assert message.startswith(f"my.yaml: {section}.{field.name}"), message


def test_a_long_value_is_shortened():
    message = complaint(resolve, NOTEBOOK, {"seeds": "x" * 10_000}, "my.yaml")
    assert message.startswith("my.yaml: seeds='xxxx") and len(message) < 200
    message = complaint(resolve, NOTEBOOK, {"dpo": {"beta": ["y"] * 10_000}}, "my.yaml")
    assert message.startswith("my.yaml: dpo.beta=['y', 'y'") and len(message) < 200


@pytest.mark.parametrize("text", ["1e-6", "1E6", "1.5e6", "+2e3"])
def test_the_hint_for_a_number_that_yaml_reads_as_text_is_a_number(text):
    assert parse_yaml(text, "x") == text  # the trap
    given = {"pair_training": {"learning_rate": parse_yaml(text, "x")}}
    message = complaint(resolve, NOTEBOOK, given, "my.yaml")
    assert message.startswith(f"my.yaml: pair_training.learning_rate='{text}': input should be a valid number")
    advised = re.search(r"write (\S+) without quotes", message)[1]
    assert parse_yaml(advised, "x") == float(text)


@pytest.mark.parametrize(
    ("name", "text"), [("seeds", "[0, 1, 2]"), ("settings", "{a: [world:conflict, x, y]}"), ("dpo", "{beta: 0.1}")]
)
def test_the_hint_for_a_list_or_section_that_papermill_hands_over_as_text_is_minus_y(name, text):
    message = complaint(resolve, NOTEBOOK, {name: text}, "notebook parameters")
    assert message.startswith(f"notebook parameters: {name}='{text[:10]}") and "write -y 'name: value'" in message


# --- YAML -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("data: x\nname: y\ndata: z\n", r"line 3: key 'data' is given twice"),
        ("dpo:\n  beta: 0.1\n  beta: 0.2\n", r"line 3: key 'beta' is given twice"),
        ("settings:\n  a: [x]\n  a: [y]\n", r"line 3: key 'a' is given twice"),
        ("data: x\n? [1, 2]\n: 3\n", r"line 2: key \[1, 2\], expected text"),
        ("yes: 1\n", r"line 1: key True, expected text"),
        ("dpo:\n  1: 2\n", r"line 2: key 1, expected text"),
        ("- 1\n- 2\n", r"expected a mapping"),
        ("", r"expected a mapping"),
        ("data: [1,\n", r"not readable as YAML: .*line 2"),
        ("data: !!python/object/apply:os.getcwd []\n", r"not readable as YAML"),
        ("data: 2020-13-45\n", r"line 1: '2020-13-45', expected a YAML timestamp"),
        ("data: !!int abc\n", r"line 1: 'abc', expected a YAML int"),
        ("data: " + "[" * 3000, r"values in values in values, expected a few levels"),
    ],
)
def test_unusable_yaml(text, expected, tmp_path):
    path = given(text, tmp_path)
    message = complaint(read_yaml, path)
    assert message.startswith(f"{path}: ")
    assert re.search(expected, message)


def test_yaml_that_is_missing_or_no_text(tmp_path):
    assert complaint(read_yaml, tmp_path / "a.yaml") == f"{tmp_path / 'a.yaml'}: no such file"
    assert "not readable" in complaint(read_yaml, tmp_path)
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\xfa")
    assert "not readable" in complaint(read_yaml, tmp_path / "b.yaml")


# --- a notebook's own globals ---------------------------------------------------------------------

CELL = "\n".join(f"{key}: {'str' if key == 'profile' else 'object'} = {value!r}" for key, value in DEFAULTS.items())


def kernel(*cells, **names):
    """The globals of a kernel that has run the parameters cell, then some others."""
    history = ["", "from x import y", CELL, *cells]
    return {**DEFAULTS, "In": history, "Out": {}, "_": 1, "get_ipython": None, "Sequential": Sequential, **names}


def test_a_notebook_checks_its_own_globals():
    assert Sequential.from_notebook(kernel()) == resolve(NOTEBOOK, {}, "x")
    assert Sequential.from_notebook(DEFAULTS) == resolve(NOTEBOOK, {}, "x")  # without IPython
    message = complaint(Sequential.from_notebook, kernel(seeds="all"))
    assert message.startswith("notebook parameters: seeds='all': input should be a valid list")
    missing = {k: v for k, v in DEFAULTS.items() if k != "seeds"}
    assert complaint(Sequential.from_notebook, missing) == "notebook parameters: seeds: missing"


def test_a_name_that_papermill_injects_must_be_a_parameter():
    injected = '# Parameters\nprofile = "smoke"\nbta = 0.1\n'
    message = complaint(Sequential.from_notebook, kernel(injected, bta=0.1))
    assert message.startswith("notebook parameters: bta=0.1: no such parameter, expected one of: base, data, dpo, ")
    known = kernel('# Parameters\nprofile = "smoke"\ndpo = {"beta": 0.7}\n', profile="smoke", dpo={"beta": 0.7})
    p = Sequential.from_notebook(known)
    assert (p.profile, p.dpo.beta) == ("smoke", 0.7)


def test_a_readers_own_variables_and_imports_do_no_harm(capsys):
    own = "import os\nfrom math import pi\nhalf = len('ab') / 4\nrate = 0.5\nmine: int = 3\na, b = 1, 2\n" + CELL
    names = kernel(own, os=math, pi=3, half=0.5, rate=0.5, mine=3, a=1, b=2)
    assert Sequential.from_notebook(names) == resolve(NOTEBOOK, {}, "x")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("sedes = [0, 1]", "note: sedes is no parameter of this notebook; did you mean seeds?\n"),
        ("train_pair: int = 8", "note: train_pair is no parameter of this notebook; did you mean train_pairs?\n"),
        ("colour = 'red'", ""),
    ],
)
def test_a_variable_of_the_parameters_cell_that_is_nearly_a_parameter_is_noted(line, said, capsys):
    names = kernel(f"{CELL}\n{line}")
    assert Sequential.from_notebook(names) == resolve(NOTEBOOK, {}, "x")
    assert capsys.readouterr().out == said
    Sequential.from_notebook(kernel(line))  # of another cell it is the reader's own
    assert capsys.readouterr().out == ""


def test_all_cells_may_be_run_again_in_the_same_kernel(capsys):
    first = Sequential.from_notebook(kernel())
    again = kernel("P = ...", "x = 1", CELL.replace("'default'", "'again'"), P=first, run=1, x=1, profile="again")
    assert Sequential.from_notebook(again) == first.model_copy(update={"profile": "again"})
    sedes = kernel(f"{CELL}\nsedes = [0]", CELL)  # the misspelling of an earlier run is mended by now
    Sequential.from_notebook(sedes)
    assert capsys.readouterr().out == ""


def test_defaults_are_read_without_running(tmp_path):
    notebook = tmp_path / "n.py"
    notebook.write_text('# %%\nraise SystemExit\n\n# %% tags=["parameters"]\na: int = 1  # text\nb = [1e-6]\n')
    assert defaults(notebook) == {"a": 1, "b": [1e-6]}
    for source in SOURCES.glob("*.py"):
        assert defaults(source) == defaults(source.parents[1] / f"{source.stem}.ipynb")


# --- what is in force -----------------------------------------------------------------------------


def test_every_value_in_force_has_a_name():
    values = resolve(NOTEBOOK, {"base": {"sft": {"steps": 7}}}, "x").values()
    assert values["base.sft.steps"] == 7 and values["dpo.beta"] == 0.3 and values["seeds"] == [0, 1]
    assert values["hardware.workers"] == 2 and values["pair_training.checkpoint_every"] == 200
    assert not any(is_dataclass(value) for value in values.values())
    flat = asdict(resolve(NOTEBOOK, {}, "x").pair_training)
    assert {name.removeprefix("pair_training."): v for name, v in values.items() if "pair_tr" in name} == flat


def test_what_was_changed_is_told_from_the_notebooks_own_values():
    p = resolve(
        NOTEBOOK, {"base": {"sft": {"steps": 7}}, "seeds": [3], "dpo": {"beta": 0.3}, "lora": {"alpha": 1}}, "x"
    )
    assert sorted(p.changed(DEFAULTS)) == ["base.sft.steps", "lora.alpha", "seeds"]
    assert resolve(NOTEBOOK, {}, "x").changed(DEFAULTS) == []
    own = {**DEFAULTS, "dpo": {"beta": 0.5}}  # a notebook that has set a section itself
    assert Sequential.checked(own, "x").changed(own) == []
    assert resolve(NOTEBOOK, {}, "x").changed(own) == ["dpo.beta"]


def test_parameters_are_frozen():
    p = resolve(NOTEBOOK, {}, "x")
    for owner, name in ((p, "seeds"), (p.dpo, "beta"), (p.base.sft, "steps")):
        with pytest.raises((AttributeError, ValueError), match=r"frozen|cannot assign"):
            setattr(owner, name, 1)


# --- rows of methods and rules --------------------------------------------------------------------

PLAIN = {"DPO": {"method": "dpo"}, "PPO": {"method": "ppo"}}
NEEDED = {"simpo": {"margin": 0.5}, "dpo_sft": {"sft": 0.1}, "conservative_dpo": {"smoothing": 0.1}} | {
    "only_tertile": {"which": "top"},
    "without_tertile": {"which": "top"},
    "adaptive": {"gain": 0.5},
    "while_sign": {"part": "negative"},
    "thresholded": {"tau": 0.5, "reading": "keep_above"},
}


def row_complaint(row):
    """In notebook 04, whose rows need no plain twin."""
    given = {"variants": {"x": row}}
    message = complaint(resolve, SOURCES / "04_coordinated_objectives.py", given, "my.yaml")
    assert message.startswith("my.yaml: variants.x"), message
    return message.removeprefix("my.yaml: ")


def rows_of_rules(rule, **arguments):
    live = {"live_every": 1} if RULES[rule].looks else {}
    return {"method": "dpo", "rule": rule, "arguments": {**NEEDED.get(rule, {}), **arguments}, **live}


def rows_of_methods(method, **arguments):
    return {"method": method, "arguments": {**NEEDED.get(method, {}), **arguments}}


CASES = [(rows_of_methods, name, kind) for name, kind in METHODS.items()]
CASES += [(rows_of_rules, name, kind) for name, kind in RULES.items()]


@pytest.mark.parametrize(("row", "name", "kind"), CASES, ids=[name for _, name, _ in CASES])
def test_every_argument_of_every_method_and_rule_is_checked_and_its_row_is_named(row, name, kind):
    Variant(**row(name)).resolved_rule(), Variant(**row(name)).resolved_method({})
    message = row_complaint(row(name, nonsense=1))
    assert re.fullmatch(r"variants\.x: nonsense=1: no such argument, expected one of: \[.*\]", message)
    assert all(f"'{field.name}'" in message for field in fields(kind))
    for field in fields(kind):
        message = row_complaint(row(name, **{field.name: ["text"]}))
        assert re.fullmatch(rf"variants\.x: (method {name}: )?{field.name}=\['text'\]: input should be .*", message)
        if field.default is MISSING:
            whole = row(name)
            del whole["arguments"][field.name]
            assert row_complaint(whole) == f"variants.x: {field.name}: missing, {what(row)} {name} needs it"


def what(row):
    return "rule" if row is rows_of_rules else "method"


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (rows_of_methods("dpo", beta="0.1"), r"variants\.x: .*beta='0.1': input should be a valid number"),
        (rows_of_methods("dpo", beta="1e-6"), r"variants\.x: .*beta='1e-6': .*write 1\.0e-6 without quotes"),
        (rows_of_methods("dpo", beta=-1.0), r"variants\.x: .*beta=-1.0: input should be greater than 0"),
        (rows_of_methods("grpo", group_size=1), r"variants\.x: .*group_size=1: input should be greater than or equal"),
        (rows_of_methods("ppo", clip=1.0), r"variants\.x: .*clip=1.0: input should be less than 1"),
        (rows_of_rules("coordinated", shape="square"), r"variants\.x: .*shape='square': input should be 'linear'"),
        (rows_of_rules("coordinated", start=1.5), r"variants\.x: .*start=1.5: input should be less than or equal to 1"),
        (rows_of_rules("adaptive", gain=2.0), r"variants\.x: .*gain=2.0: input should be less than or equal to 1"),
        (rows_of_rules("thresholded", tau=-1.0), r"variants\.x: .*tau=-1.0: input should be greater than or equal"),
        ({"method": "dpo", "rule": "nonsense"}, r"variants\.x\.rule='nonsense': no such rule, expected one of: plain"),
        ({"method": "nonsense"}, r"variants\.x\.method='nonsense': input should be 'dpo', "),
        ({"method": "dpo", "rule": "adaptive"}, r"variants\.x\.rule='adaptive' with live_every=None: expected an int"),
        ({"rule": "plain"}, r"variants\.x\.method: missing$"),
        ({"method": "dpo", "until": 0.0}, r"variants\.x\.until=0.0: input should be greater than 0"),
        ({"method": "dpo", "untill": 0.5}, r"variants\.x\.untill=0.5: no such parameter$"),
        ({"method": "dpo", "reward": "oracel"}, r"variants\.x\.reward='oracel': input should be 'model', 'implicit'"),
        ({"method": "dpo", "sweep": []}, r"variants\.x\.sweep=\[\]: list should have at least 1 item"),
        ({"method": "dpo", "sweep": [{"bet": 1.0}]}, r"variants\.x: bet=1.0: no such argument, expected one of"),
        ("dpo", r"variants\.x='dpo': input should be a valid dictionary"),
    ],
)  # fmt: skip
def test_a_row_that_is_wrong_is_named(row, expected):
    assert re.match(expected, row_complaint(row))


def test_notebook_03_names_a_wrong_row_too():
    for row, expected in (
        (
            {"method": "dpo", "rule": "without_negative", "arguments": {"at": 0.5}},
            "variants.x: at=0.5: no such argument",
        ),
        ({"method": "dpo", "rule": "only_tertile"}, "variants.x: which: missing, rule only_tertile needs it"),
        ({"method": "dpo", "rule": "only_tertil"}, "variants.x.rule='only_tertil': no such rule"),
        ({"method": "dpo", "sweep": [{}]}, "variants.x.sweep=[{}]: no such parameter"),
    ):
        message = complaint(resolve, ABLATIONS, {"variants": PLAIN | {"x": row}}, "my.yaml")
        assert message.startswith(f"my.yaml: {expected}"), message


def test_no_method_and_rule_have_an_argument_of_the_same_name():
    """A row gives the arguments of both in one place."""
    of_rules, of_methods = ({f.name for kind in table.values() for f in fields(kind)} for table in (RULES, METHODS))
    assert not of_rules & of_methods


def test_a_row_becomes_its_method_and_its_rule():
    row = Variant(method="simpo", rule="only_tertile", arguments={"margin": 0.5, "which": "top"})
    assert row.resolved_method({}) == METHODS["simpo"](margin=0.5) and row.resolved_rule() == RULES["only_tertile"](
        "top"
    )
    assert Variant(method="dpo", rule="without_negative", until=0.4).resolved_rule() == Until(0.4, WithoutNegative())
    assert Variant(method="dpo", until=0.4).resolved_rule() == RULES["plain"]()
    assert [row.family for row in (Variant(method="kto"), Variant(method="rloo"))] == ["dpo", "ppo"]
    swept = Contender(method="dpo", arguments={"beta": 0.2}, sweep=[{}, {"beta": 0.4}])
    assert [row.arguments for row in swept.candidates({"beta": 0.3, "clip": 0.1})] == [{"beta": 0.2}, {"beta": 0.4}]
    assert Contender(method="dpo").candidates({"beta": 0.3, "clip": 0.1})[0].arguments == {"beta": 0.3}


def test_every_notebooks_class_takes_what_all_have():
    assert all(issubclass(kind, Parameters) for kind in EXPERIMENTS.values())
    assert {"profile", "name", "hardware"} <= set.intersection(
        *(set(kind.model_fields) for kind in EXPERIMENTS.values())
    )


# --- defaults -------------------------------------------------------------------------------------

PUBLISHED = sorted((SOURCES.parents[1] / "figures" / "default").glob("*/provenance.json"))


@pytest.mark.parametrize("file", PUBLISHED, ids=[file.parent.name for file in PUBLISHED])
def test_the_published_default_run_had_the_defaults_of_today(file):
    """Whoever changes a default publishes the default run again: its numbers and verdicts are of these values."""
    name = file.parent.name
    now = resolve(SOURCES / f"{name}.py", {}, name)
    assert json.loads(now.model_dump_json()) == json.loads(file.read_text())["parameters"]
