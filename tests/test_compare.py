"""`preflab compare`: what counts as a difference, what stands beside it, and how it ends."""

import copy
import json

import pytest
from typer.testing import CliRunner

from preflab.reviewing.comparing import Tolerance, leaves
from preflab.running.cli import app

CLAIM = {"id": "S1", "statement": "It is so.", "statistic": "A rule.", "value": 0.5, "interval": [0.25, 0.75]}
METRICS = {
    "claims": [{**CLAIM, "verdict": "reproduced", "power": None}],
    "metrics": {"accuracy": 0.5, "steps": 2000, "name": "one", "missing": None, "none": {}},
    "series": {"loss": [0.5, [1, 2]]},
}
PROVENANCE = {
    "name": "01_sequential_settings",
    "command": "preflab run 01_sequential_settings --profile full",
    "parameters": {"profile": "full", "dpo": {"beta": 0.3}, "seeds": [0]},
    "preflab": "0.1.0",
    "git": {"commit": "a" * 40, "dirty": False},
    "versions": {"torch": "2.13.0"},
    "platform": "Linux x86_64",
    "device": "cpu",
    "data": {"seed 0": {"fingerprint": "f" * 64}, "report": "none"},
}


@pytest.fixture
def pair(tmp_path):
    """pair(metrics, provenance): a folder as it was, and one in which both functions have changed something."""

    def make(metrics=lambda of: None, provenance=lambda of: None):
        for name in ("first", "second"):
            (tmp_path / name).mkdir()
            contents = {"metrics": copy.deepcopy(METRICS), "provenance": copy.deepcopy(PROVENANCE)}
            if name == "second":
                metrics(contents["metrics"])
                provenance(contents["provenance"])
            for file, content in contents.items():
                (tmp_path / name / f"{file}.json").write_text(json.dumps(content))
        return tmp_path / "first", tmp_path / "second"

    return make


def compared(folders, *words):
    done = CliRunner().invoke(app, ["compare", *map(str, folders), *words])
    return done.exit_code, done.stdout, done.stderr


def setting(path, value):
    """A function that sets one value in nested mappings and lists."""

    def change(content):
        *before, last = path
        for key in before:
            content = content[key]
        content[last] = value

    return change


def test_equal_results_are_alike(pair):
    assert compared(pair()) == (0, "alike; 10 values are in both\n", "")


@pytest.mark.parametrize(
    ("path", "value", "alike"),
    [
        (("metrics", "accuracy"), 0.5009, True),
        (("metrics", "accuracy"), 0.5011, False),
        (("metrics", "accuracy"), 0.4989, False),
        (("metrics", "steps"), 2001.5, True),  # by its size
        (("metrics", "steps"), 2003, False),
        (("metrics", "name"), "two", False),
        (("metrics", "missing"), 0.0, False),
        (("metrics", "accuracy"), None, False),
        (("series", "loss", 1, 0), 1.1, False),
        (("claims", 0, "value"), 0.6, False),
        (("claims", 0, "interval", 1), 0.76, False),
        (("claims", 0, "verdict"), "inconclusive", False),
        (("claims", 0, "statistic"), "Another rule.", False),
        (("claims", 0, "id"), "S2", False),
        (("claims", 0, "statement"), "In other words.", True),
    ],
)
def test_what_counts_as_a_difference(pair, path, value, alike):
    code, told, _ = compared(pair(setting(path, value)))
    assert code == (0 if alike else 1), told
    assert told.splitlines()[-1].startswith("alike" if alike else "not alike")


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        (("parameters", "dpo", "beta"), 0.1, "parameters that differ: 1\n  dpo.beta: 0.3 | 0.1\n"),
        (("parameters", "new"), 1, "parameters that differ: 1\n  new: none | 1\n"),
        (("versions", "torch"), "3", "versions that differ: 1\n  torch: 2.13.0 | 3\n"),
        (("preflab",), "0.2.0", "versions that differ: 1\n  preflab: 0.1.0 | 0.2.0\n"),
        (("device",), "cuda", "machines that differ: 1\n  device: cpu | cuda\n"),
        (("git", "commit"), "b", f"commits that differ: 1\n  commit: {'a' * 40} | b\n"),
        (("data", "seed 0", "fingerprint"), "e", f"data that differ: 1\n  seed 0: {'f' * 64} | e\n"),
    ],
)
def test_what_stands_beside_is_told_and_is_no_difference(pair, path, value, told):
    code, out, _ = compared(pair(provenance=setting(path, value)))
    assert (code, out) == (0, f"{told}alike; 10 values are in both\n")


def test_what_only_one_has_is_told(pair):
    def other(metrics):
        metrics["metrics"]["new"] = 1
        metrics["claims"] = []
        del metrics["series"]["loss"]

    code, told, _ = compared(pair(other))
    assert code == 1
    assert "claims in the first only: 1\n  S1\n" in told
    assert "values in the first only: 6\n  series/loss/0\n  series/loss/1/0\n" in told
    assert "values in the second only: 1\n  metrics/new\n" in told


def test_the_largest_difference_stands_first_and_the_rest_is_counted(pair):
    def other(metrics):
        metrics["metrics"] |= {"accuracy": 0.6, "name": "two", "steps": 3000}
        metrics["series"]["loss"][0] = 0.9

    _, told, _ = compared(pair(other), "--lines", "3")
    names = [line.split(":")[0].strip() for line in told.splitlines()[1:5]]
    assert names == ["metrics/name", "series/loss/0", "metrics/steps", "and 1 more"]


@pytest.mark.parametrize(("value", "inside"), [(0.7, True), (0.8, False), (0.2, False)])
def test_claims_stand_side_by_side(pair, value, inside):
    def other(metrics):
        metrics["claims"][0] |= {"value": value, "interval": [0.0, 1.0]}

    _, told, _ = compared(pair(other))
    line = f"  S1: 0.5 [0.25, 0.75] | {value} [0, 1]"
    assert f"{line}{': each value lies in the other interval' if inside else ''}\n" in told


def test_the_tolerance_can_be_told(pair):
    folders = pair(setting(("metrics", "accuracy"), 0.6))
    assert compared(folders, "--absolute", "0.11")[0] == 0
    assert compared(folders, "--relative", "0.2")[0] == 0
    assert compared(folders, "--absolute", "0.09", "--relative", "0.1")[0] == 1
    assert compared(folders, "--absolute", "-1")[0] == 2


def test_true_is_no_number():
    assert not Tolerance(2, 2).alike(True, 1) and Tolerance(0, 0).alike(1, 1.0)


def test_leaves_are_named_by_their_path():
    assert leaves({"a": {}, "b": [], "c": [0, {"d": None}]}) == {"c/0": 0, "c/1/d": None}


def test_a_folder_that_no_run_has_written_is_one_line(pair, tmp_path):
    first, second = pair()
    code, out, error = compared((first, tmp_path / "nowhere"))
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert error == f"error: {tmp_path}/nowhere: no such folder, expected one of results/ or figures/\n"
    (second / "provenance.json").unlink()
    assert "provenance.json: no such file, expected a folder that `preflab run`" in compared((first, second))[2]
    (second / "provenance.json").write_text('{"name": 3}')
    error = compared((first, second))[2]
    assert error.endswith("provenance.json: name: input should be a valid string; expected what a run writes\n")
    (second / "metrics.json").write_text("[1]")
    assert "metrics.json: all of it: input should be" in compared((first, second))[2]
