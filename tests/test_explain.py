"""`preflab explain`: from a figure to its cell, claims, run and registration, and its run again."""

import json
import re
import shutil

import nbformat
import pytest
from typer.testing import CliRunner

from preflab.claims.registration import registered
from preflab.errors import BadInput
from preflab.paths import project_root
from preflab.reviewing import explaining
from preflab.reviewing.explaining import cell_of, explain
from preflab.reviewing.results import hash_at
from preflab.running import cli
from preflab.running.asked import asked_by, command_line

ROOT = project_root()
FOLDER = ROOT / "figures" / "full" / "02_g_dynamics"


@pytest.fixture
def copied(tmp_path):
    """A folder of figures that a test may change: its six panels and their files."""
    for name in ("six_panels.png", "six_panels.json", "metrics.json", "provenance.json"):
        shutil.copyfile(FOLDER / name, tmp_path / name)
    return tmp_path


def edit(file, **values):
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def told(figure):
    """What is told, by title."""
    found, title = {}, ""
    for line in explain(figure):
        title = line[: explaining.WIDTH].strip() or title
        found.setdefault(title, []).append(line[explaining.WIDTH + 1 :])
    return found


def test_a_committed_figure_is_explained():
    found, parameters = told(FOLDER / "six_panels.png"), json.loads((FOLDER / "provenance.json").read_text())
    assert found["figure"] == [f"{FOLDER / 'six_panels.png'} (as the run drew it)"]
    assert found["command"] == ["preflab run 02_g_dynamics --profile full"]
    assert found["commit"] == [f"{parameters['git']['commit']} (clean)"]
    assert found["profile"] == ["full"] and found["seeds"] == [str(parameters["parameters"]["seeds"])]
    assert "base.sft.steps: 1200, the notebook's own is 400" in found["parameters"]
    assert not [line for line in found["parameters"] if line.startswith(("profile", "name", "seeds", "dpo.beta"))]
    assert found["data"][0] == f"seed 0: {parameters['data']['seed 0']['fingerprint'][:12]}"
    claims = {claim["id"]: claim for claim in json.loads((FOLDER / "metrics.json").read_text())["claims"]}
    assert [line.split(":")[0] for line in found["claims"][:-1:2]] == list(claims)
    assert found["claims"][0].endswith(f": {claims['D1']['verdict']}")
    assert found["claims"][1].strip() == f"rule: {claims['D1']['statistic']}"
    assert found["claims"][-1] == "rules are in lib/preflab/claims/dynamics.py"


def test_a_figure_and_the_file_beside_it_are_told_alike():
    assert told(FOLDER / "six_panels.json") == told(FOLDER / "six_panels.png")


def test_the_cell_that_is_named_draws_the_figure():
    (line,) = told(FOLDER / "six_panels.png")["drawn in"]
    number = int(re.fullmatch(r'notebooks/02_g_dynamics\.ipynb, cell (\d+), section "G along training"', line)[1])
    cells = nbformat.read(ROOT / "notebooks" / "02_g_dynamics.ipynb", as_version=4).cells
    assert 'run.figure("six_panels"' in cells[number - 1].source


@pytest.mark.parametrize("sidecar", sorted((ROOT / "figures" / "default").glob("*/*.json")), ids=lambda p: p.stem)
def test_every_figure_of_today_has_its_cell(sidecar):
    if "figure" in (content := json.loads(sidecar.read_text())):
        cells = nbformat.read(ROOT / "notebooks" / f"{content['name']}.ipynb", as_version=4).cells
        assert cell_of(cells, sidecar.stem)


def test_a_cell_stands_under_the_last_heading_before_it():
    cells = [
        {"cell_type": "markdown", "source": "# One\n\n## Two"},
        {"cell_type": "markdown", "source": "no heading"},
        {"cell_type": "code", "source": 'run.figure("a_b", x)'},
        {"cell_type": "code", "source": 'run.figure(\n    "a", x)'},
    ]
    assert cell_of(cells, "a") == explaining.Cell(4, "Two")
    assert cell_of(cells, "b") is None


def test_a_figure_that_decides_no_claim_says_so():
    first = "none is decided by it; rules of its notebook are in lib/preflab/claims/dynamics.py"
    assert told(FOLDER / "training.png")["claims"] == [first]
    found = told(ROOT / "figures" / "default" / "08_optimisers" / "links.png")
    assert found["claims"] == ["none is decided by it; its notebook judges none"]


def test_a_picture_that_was_changed_is_told(copied):
    with (copied / "six_panels.png").open("ab") as picture:
        picture.write(b".")
    assert "NOT what the run drew" in told(copied / "six_panels.png")["figure"][0]
    (copied / "six_panels.png").unlink()
    assert told(copied / "six_panels.json")["figure"][0].endswith("(the picture is not there)")


def test_what_a_run_of_old_had_otherwise_stands_apart(copied):
    parameters = json.loads((copied / "six_panels.json").read_text())["parameters"]
    del parameters["lora"]
    edit(copied / "six_panels.json", parameters={**parameters, "old_name": 3}, data={}, command=None)
    found = told(copied / "six_panels.png")
    assert "no parameters today: old_name=3" in found["parameters"]
    assert "not known to that run: lora.rank, lora.alpha, lora.dropout" in " ".join(found["parameters"])
    assert found["data"] == ["no fingerprints recorded"]
    assert found["command"] == ["none: it was run in JupyterLab or by papermill"]


def test_rows_that_a_reader_names_are_told_by_their_names():
    found = told(ROOT / "figures" / "real" / "01_sequential_settings_truthfulqa" / "quartiles.png")["parameters"]
    assert any(line.startswith("settings: rows that the notebook lacks: 'two labels'") for line in found)
    ran, own = {"a": {"x": 1}, "b": 2}, {"a": {"x": 2}, "c": 3}
    assert explaining._against(ran, own) == (
        "rows that the notebook lacks: 'b'; rows of the notebook that the run lacks: 'c'; "
        "other rows of the same name: 'a'"
    )


# --- registrations --------------------------------------------------------------------------------

READ = registered("02_g_dynamics").sha256


@pytest.mark.parametrize(
    ("today", "then", "words"),
    [
        (READ, READ, ": still the committed one; it was in the commit of the run"),
        ("0" * 64, READ, ": NOT the committed one; it was in the commit of the run"),
        (READ, "0" * 64, ": still the committed one; it was NOT in the commit of the run"),
        (None, None, ": still the committed one; the commit of the run has none, or is not here"),
    ],
)
def test_whether_a_registration_still_stands(monkeypatch, today, then, words):
    monkeypatch.setattr(explaining, "hash_at", lambda commit, path: today if commit == "HEAD" else then)
    (line,) = told(FOLDER / "six_panels.png")["registration"]
    assert line == f"{READ[:12]}, lib/preflab/claims/registered/02_g_dynamics.yaml{words}"


def test_a_run_without_a_registration_is_told(copied):
    metrics = json.loads((copied / "metrics.json").read_text())
    del metrics["metrics"]["registration"]
    (copied / "metrics.json").write_text(json.dumps(metrics))
    (line,) = told(copied / "six_panels.png")["registration"]
    assert line == "the run has read none; today there is lib/preflab/claims/registered/02_g_dynamics.yaml"


def test_git_is_asked_for_the_file_of_a_commit():
    assert hash_at("HEAD", "no/such/file") is None and hash_at("0" * 40, "README.md") is None


# --- its run again --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words", [("01_a", "full", []), ("01_a", "real", ["data=my folder", "dpo={beta: 0.3}"])], ids=["plain", "overrides"]
)
def test_a_recorded_command_is_read_again(words):
    assert asked_by(command_line(*words)) == words


@pytest.mark.parametrize(
    "command",
    [
        None,
        "",
        "preflab render 01_a",
        "rm -rf x",
        "preflab run 01_a",
        "preflab run 01_a --profile full -p",
        "preflab 'x",
    ],
)
def test_any_other_command_is_not_run(command):
    with pytest.raises(BadInput, match="expected a recorded `preflab run NAME --profile PROFILE`"):
        asked_by(command)


def test_a_rerun_runs_what_was_recorded(copied, monkeypatch):
    asked = []
    monkeypatch.setattr(cli, "_run", lambda *words: asked.append(words) or FOLDER)
    edit(copied / "six_panels.json", command="preflab run 02_g_dynamics --profile full -p 'seeds=[0, 1]'")
    plain = CliRunner().invoke(cli.app, ["explain", str(copied / "six_panels.png")])
    assert plain.exit_code == 0 and not asked
    again = CliRunner().invoke(cli.app, ["explain", str(copied / "six_panels.png"), "--rerun"])
    assert again.exit_code == 0, again.output
    assert asked == [("02_g_dynamics", "full", ["seeds=[0, 1]"])]
    assert again.stdout.startswith(plain.stdout) and "  D1   reproduced" in again.stdout  # the verdicts of the run


# --- what is no figure ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("README.md", "README.md: expected a figure (.png), or the .json beside it"),
        ("figures", "figures: expected a figure (.png), or the .json beside it"),
        ("figures/full/none.png", "figures/full/none.json: no such file, expected the .json beside a figure"),
        ("figures/full/02_g_dynamics/metrics.json", "metrics.json: name: field required; expected what a run writes"),
        ("figures/full/02_g_dynamics/provenance.json", "provenance.json: figure: field required; expected what a"),
    ],
)
def test_what_is_no_figure_is_one_line(path, words):
    done = CliRunner().invoke(cli.app, ["explain", str(ROOT / path)])
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("error: ") and words in done.stderr
