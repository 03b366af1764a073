"""Parameters are checked before anything starts, and every complaint is one line that helps."""

import math
import re
from pathlib import Path

import pytest

from preflab.errors import BadInput
from preflab.parameters import SequentialSettings, defaults, parse_yaml, read_yaml, resolve

NOTEBOOK = Path(__file__).resolve().parents[1] / "notebooks" / "src" / "01_sequential_settings.py"
DEFAULTS = defaults(NOTEBOOK)


def complaint(call, *args):
    """The message of the BadInput that a call raises: one line."""
    with pytest.raises(BadInput) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def given(text, tmp_path):
    path = tmp_path / "01_sequential_settings.yaml"
    path.write_text(text)
    return path


def test_defaults_are_valid_and_what_is_given_wins():
    assert resolve(NOTEBOOK, {}, "x").model_dump() == DEFAULTS
    resolved = resolve(NOTEBOOK, {"beta": 0.7}, "x")
    assert resolved.model_dump() == {**DEFAULTS, "beta": 0.7}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"learning_rat": 0.1}, r"learning_rat=0.1: no such parameter, expected one of: .*\blearning_rate\b"),
        ({"beta": "0.1"}, r"beta='0.1': input should be a valid number"),
        ({"batch_size": True}, r"batch_size=True: input should be a valid integer"),
        ({"batch_size": 8.0}, r"batch_size=8.0: input should be a valid integer"),
        ({"beta": True}, r"beta=True: input should be a valid number"),
        ({"beta": math.nan}, r"beta=nan: input should be a finite number"),
        ({"learning_rate": math.inf}, r"learning_rate=inf: input should be a finite number"),
        ({"beta": 0.0}, r"beta=0.0: input should be greater than 0"),
        ({"warmup_share": 1.0}, r"warmup_share=1.0: input should be less than 1"),
        ({"lora_rank": -1}, r"lora_rank=-1: input should be greater than or equal to 0"),
        ({"seeds": []}, r"seeds=\[\]: list should have at least 1 item"),
        ({"seeds": [0, -1]}, r"seeds.1=-1: input should be greater than or equal to 0"),
        ({"device": "gpu"}, r"device='gpu': input should be 'auto', 'cpu', 'cuda' or 'mps'"),
        ({"profile": "../elsewhere"}, r"profile='../elsewhere': string should match pattern"),
        ({"settings": {"a": ["world:conflict", "helpful"]}}, r"settings.a=.*at least 3 items"),
        ({1: 2}, r"keys should be strings"),
    ],
)
def test_one_parameter_wrong(values, expected):
    message = complaint(resolve, NOTEBOOK, values, "my.yaml")
    assert message.startswith("my.yaml: ")
    assert re.search(expected, message)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"hidden_size": 64, "heads": 3}, r"hidden_size=64: expected a multiple of heads=3"),
        ({"batch_size": 64, "train_pairs": 32}, r"batch_size=64: expected at most train_pairs=32"),
        ({"seeds": [1, 1]}, r"seeds=\[1, 1\]: expected different numbers"),
        (
            {"settings": {"a": ["conflict", "x", "y"]}},
            r"settings.a='conflict': expected world:NAME, hub:REPO",
        ),
        ({"settings": {"a": ["world:conflict", "x", "x"]}}, r"settings.a: both objectives are 'x'"),
    ],
)
def test_parameters_that_cannot_go_together(values, expected):
    assert re.search(expected, complaint(resolve, NOTEBOOK, values, "my.yaml"))


@pytest.mark.parametrize("text", ["1e-6", "1E6", "1.5e6", "+2e3"])
def test_the_hint_for_a_number_that_yaml_reads_as_text_is_a_number(text):
    assert parse_yaml(text, "x") == text  # the trap
    message = complaint(resolve, NOTEBOOK, {"learning_rate": parse_yaml(text, "x")}, "my.yaml")
    advised = re.search(r"write (\S+) without quotes", message)[1]
    assert parse_yaml(advised, "x") == float(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("beta: 0.1\nepochs: 1\nbeta: 0.2\n", r"line 3: key 'beta' is given twice"),
        ("settings:\n  a: [x]\n  a: [y]\n", r"line 3: key 'a' is given twice"),
        ("beta: 0.1\n? [1, 2]\n: 3\n", r"line 2: key \[1, 2\], expected text"),
        ("yes: 1\n", r"line 1: key True, expected text"),
        ("- 1\n- 2\n", r"expected a mapping"),
        ("", r"expected a mapping"),
        ("beta: [1,\n", r"not readable as YAML: .*line 2"),
        ("beta: !!python/object/apply:os.getcwd []\n", r"not readable as YAML"),
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


def test_a_notebook_checks_its_own_globals():
    ipython = {"In": [], "Out": {}, "_": 1, "get_ipython": None, "SequentialSettings": SequentialSettings}
    assert SequentialSettings.from_notebook({**DEFAULTS, **ipython}).model_dump() == DEFAULTS
    message = complaint(SequentialSettings.from_notebook, {**DEFAULTS, **ipython, "bta": 0.1})
    assert message.startswith("notebook parameters: bta=0.1: no such parameter")
    missing = {k: v for k, v in DEFAULTS.items() if k != "beta"}
    assert complaint(SequentialSettings.from_notebook, missing) == "notebook parameters: beta: missing"


def test_a_kernel_that_has_run_before_is_to_be_restarted():
    settings = SequentialSettings.from_notebook(DEFAULTS)
    assert "restart it" in complaint(SequentialSettings.from_notebook, {**DEFAULTS, "P": settings, "runs": 1})


def test_defaults_are_read_without_running(tmp_path):
    notebook = tmp_path / "n.py"
    notebook.write_text('# %%\nraise SystemExit\n\n# %% tags=["parameters"]\na: int = 1  # text\nb = [1e-6]\n')
    assert defaults(notebook) == {"a": 1, "b": [1e-6]}
