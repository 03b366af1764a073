"""The command: what it runs, writes, refuses and leaves behind. The notebooks here are small fakes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jupytext
import nbformat
import pytest
from typer.testing import CliRunner

from preflab import notebooks, paths
from preflab.cli import app
from preflab.parameters import defaults, resolve

NAME = "01_sequential_settings"
SOURCE = Path(__file__).resolve().parents[1] / "notebooks" / "src" / f"{NAME}.py"
VALUES = "\n".join(f"{key} = {value!r}" for key, value in defaults(SOURCE).items())
COMMAND = "import preflab.paths as p; p.project_root = lambda: p.Path({root!r}); from preflab.cli import app; app()"


def _heed_ctrl_c():
    """A shell that starts the tests in the background has Ctrl-C ignored, and every child would inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Project:
    """A checkout with one notebook, `body` after its parameters cell, and one file of parameters."""

    def __init__(self, root):
        self.root, self.results = root, root / "results"
        for folder in ("notebooks/src", "params/default"):
            (root / folder).mkdir(parents=True)
        self.yaml = root / "params" / "default" / f"{NAME}.yaml"
        self.yaml.write_text("beta: 0.2\n")
        self.body("print(beta)")

    def body(self, *cells):
        text = "\n\n".join([f'# %% tags=["parameters"]\n{VALUES}', *(f"# %%\n{cell}" for cell in cells)])
        (self.root / "notebooks" / "src" / f"{NAME}.py").write_text(text + "\n")
        nbformat.write(jupytext.reads(text, "py:percent"), self.root / "notebooks" / f"{NAME}.ipynb")

    def call(self, *words):
        """In this process."""
        return CliRunner().invoke(app, words)

    def start(self, *words):
        """In a process of its own, so that also what a kernel writes to stderr is seen."""
        command = [sys.executable, "-c", COMMAND.format(root=str(self.root)), *words]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, cwd="/", text=True, preexec_fn=_heed_ctrl_c, **pipes)

    def files(self):
        """Every file and folder under results/ but the profile's own."""
        return sorted(str(p.relative_to(self.results)) for p in self.results.glob("*/*"))


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "project_root", lambda: tmp_path)
    monkeypatch.setenv("PREFLAB_RESULTS", str(tmp_path / "results"))  # a kernel knows no monkeypatch
    return Project(tmp_path)


def one_error(result, code=2):
    """The error line of a command that refused."""
    assert result.exit_code == code
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: ")
    return result.stderr[len("error: ") : -1]


# --- refusals before anything starts --------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["-p", "learning_rat=0.1"], "-p: learning_rat=0.1: no such parameter"),
        (
            ["-p", "learning_rate=1e-6"],
            "-p: learning_rate='1e-6': input should be a valid number (text in YAML",
        ),
        (["-p", "batch_size=true"], "-p: batch_size=True: input should be a valid integer"),
        (["-p", "beta"], "-p beta: expected key=value"),
        (["-p", "beta=0.1", "-p", "beta=0.3"], "-p beta=0.3: beta is given twice"),
        (["-p", "seeds=[0"], "-p seeds=[0: not readable as YAML"),
        (["--profile", "ful"], "profile 'ful': no such profile in params/, expected one of: default"),
    ],
)
def test_a_run_is_refused_before_it_starts(project, words, expected):
    assert expected in one_error(project.call("run", NAME, *words))
    assert not project.results.exists()


def test_a_bad_file_is_named_and_not_blamed_on_the_command_line(project):
    project.yaml.write_text("beta: fast\n")
    error = one_error(project.call("run", NAME, "-p", "beta=0.3"))
    assert error == f"{project.yaml}: beta='fast': input should be a valid number"


def test_unknown_names(project):
    assert "expected one of: " + NAME in one_error(project.call("run", "02_g"))
    project.yaml.with_name("09_other.yaml").write_text("beta: 0.1\n")
    assert "09_other: no notebook of this name" in one_error(project.call("run", "09_other"))
    assert "expected one of: " + NAME in one_error(project.call("render", "02_g"))


def test_results_that_cannot_be_written(project):
    project.results.write_text("a file where the folder should be")
    assert f"results folder {project.results / 'default'}: not writable" in one_error(project.call("run", NAME))
    assert project.results.read_text() == "a file where the folder should be"


def test_check(project):
    result = project.call("check", str(project.yaml))
    assert (result.exit_code, result.stdout) == (0, f"{project.yaml}: ok\n")
    project.yaml.write_text("beta: 0.1\nbeta: 0.2\n")
    assert one_error(project.call("check", str(project.yaml))).endswith(
        "line 2: key 'beta' is given twice, expected once"
    )
    assert "no such file" in one_error(project.call("check", str(project.yaml.with_suffix(".yml"))))


def test_the_longest_notebook_name_wins(project):
    from preflab.notebooks import find_notebook

    for stem in ("01_seq", "01_sequential_settings_more"):
        (project.root / "notebooks" / f"{stem}.ipynb").write_text("{}")
    assert find_notebook(f"{NAME}_hh").stem == NAME
    assert find_notebook("01_sequential_settings_more_hh").stem == "01_sequential_settings_more"


# --- runs -----------------------------------------------------------------------------------------

RUN = f"""from preflab.parameters import SequentialSettings
parameters = SequentialSettings.from_notebook(globals())
import sys
from preflab.runs import Progress, Run
run = Run(parameters)
progress = Progress("stages", 1)
progress.advance()
claim = dict(id="S1", statement="It holds.", value=beta, interval=[0.1, 0.5], verdict="reproduced")
run.finish([claim], {{"tiny": 5e-7}}, {{}}, {{"interpreter": sys.executable == {sys.executable!r}}})"""


def test_a_run_writes_its_folder_and_shows_progress_and_verdicts(project, tmp_path, monkeypatch):
    """Also under an installed "python3" kernel of some other interpreter, which must not be used."""
    other = tmp_path / "jupyter" / "kernels" / "python3"
    other.mkdir(parents=True)
    (other / "kernel.json").write_text('{"argv": ["/bin/false"], "display_name": "x", "language": "python"}')
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    project.body(RUN)
    stdout, stderr = (process := project.start("reproduce")).communicate()
    assert process.returncode == 0, stderr
    assert stderr.splitlines() == [f"{NAME}  stages: 0 of 1", f"{NAME}  stages: 1 of 1"]
    assert stdout.splitlines()[1].split() == ["S1", "reproduced", "0.2", "[0.1,", "0.5]", "It", "holds."]
    folder = project.results / "default" / NAME
    assert project.files() == [f"default/{NAME}"]
    assert {f.name for f in folder.iterdir()} == {"notebook.ipynb", "metrics.json", "provenance.json"}
    assert json.loads((folder / "metrics.json").read_text())["metrics"] == {"tiny": 5e-7}
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["command"] == f"preflab run {NAME} --profile default"
    assert provenance["parameters"]["beta"] == 0.2
    assert provenance["data"]["interpreter"]


def test_what_is_up_to_date_is_not_run_again(project):
    """`reproduce` goes by the cells, the parameters and the code; `run` always runs."""
    project.body(RUN)
    folder = project.results / "default" / NAME

    def runs_again(*words):
        before = (folder / "metrics.json").stat().st_ino if folder.exists() else None
        result = project.call(*words)
        assert result.exit_code == 0, result.stderr
        again = (folder / "metrics.json").stat().st_ino != before
        assert ("up to date" in result.stderr) == (not again)
        assert "S1" in result.stdout
        return again

    assert runs_again("reproduce")
    assert not runs_again("reproduce")
    assert runs_again("run", NAME)
    project.body(RUN + "  # changed")
    project.yaml.write_text("beta: 0.3\n")
    assert runs_again("reproduce")


def test_what_decides_whether_results_are_up_to_date(monkeypatch):
    def inputs(cell="print(1)", **given):
        return notebooks.inputs(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)]), values(**given))

    def values(**given):
        return resolve(SOURCE, given, "test")

    before = inputs()
    assert inputs() == before  # cells have new ids
    assert inputs("print(2)") != before and inputs(beta=0.7) != before
    for name, other in (("code_version", lambda without: "other"), ("library_versions", lambda: {"torch": "0"})):
        with monkeypatch.context() as changed:
            changed.setattr(notebooks, name, other)
            assert inputs() != before


def test_results_from_data_outside_the_project_are_never_up_to_date(project):
    notebook, given = nbformat.v4.new_notebook(), {"settings": {"x": ["files:a", "b", "c"]}}
    folder = project.results / "default" / NAME
    folder.mkdir(parents=True)
    for values, expected in (({}, True), (given, False)):
        parameters = resolve(SOURCE, values, "test")
        (folder / "provenance.json").write_text(json.dumps({"inputs": notebooks.inputs(notebook, parameters)}))
        assert notebooks.up_to_date(notebook, parameters) == expected


def test_a_value_of_the_command_line_reaches_the_notebook(project):
    kept = project.results / "default" / "mine.failed.ipynb"
    kept.parent.mkdir(parents=True)
    kept.touch()
    result = project.call("run", NAME, "-p", "beta=0.75", "-p", "name=mine")
    assert result.exit_code == 0, result.stderr
    assert project.files() == ["default/mine"]  # an older failure of that name is gone
    executed = nbformat.read(project.results / "default" / "mine" / "notebook.ipynb", as_version=4)
    assert executed.cells[-1].outputs[0].text == "0.75\n"


def test_bad_input_inside_a_notebook_is_one_line_and_leaves_what_was_there(project):
    earlier = project.results / "default" / NAME
    earlier.mkdir(parents=True)
    project.body(
        "import os, pathlib; pathlib.Path(os.environ['PREFLAB_STAGING'], 'half').touch()",
        "from preflab.errors import BadInput\nraise BadInput('data.jsonl: row 3: missing column')",
    )
    stdout, stderr = (process := project.start("run", NAME)).communicate()
    assert (process.returncode, stdout) == (2, "")
    assert stderr == "error: data.jsonl: row 3: missing column\n"
    assert project.files() == [f"default/{NAME}"]
    assert not list(earlier.iterdir())


def test_other_errors_keep_the_failed_notebook(project):
    project.body("raise KeyError('a\\nb')")
    error = one_error(project.call("run", NAME), code=1)
    failed = project.results / "default" / f"{NAME}.failed.ipynb"
    assert error.startswith("KeyError: ")
    assert str(failed) in error
    assert project.files() == [f"default/{NAME}.failed.ipynb"]
    assert "KeyError" in failed.read_text()


def test_out_of_memory_is_one_line(project):
    project.body("raise MemoryError('wanted 3 GB\\nand more')")
    assert one_error(project.call("run", NAME), code=1) == "out of memory: wanted 3 GB"
    assert project.files() == []


def test_a_killed_kernel_is_one_line(project):
    project.body("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert "out of memory?" in one_error(project.call("run", NAME), code=1)


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_leaves_nothing_and_no_process(project, sent, code):
    project.body(
        "import os, pathlib, subprocess, sys, time\n"
        "worker = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"pathlib.Path({str(project.root)!r}, 'pids').write_text(f'{{os.getpid()}} {{worker.pid}}')\n"
        "time.sleep(600)"
    )
    process, pids = project.start("run", NAME), project.root / "pids"
    wait_until(lambda: pids.exists() and len(pids.read_text().split()) == 2)
    process.send_signal(sent)
    process.communicate(timeout=30)
    assert process.returncode == code
    assert project.files() == []
    wait_until(lambda: not any(running(int(pid)) for pid in pids.read_text().split()))


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def running(pid):
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


# --- what is committed ----------------------------------------------------------------------------


def test_render_writes_a_clean_executed_notebook_at_the_defaults(project):
    project.body("import sys; print(beta); print(' ', file=sys.stderr)")
    result = project.call("render", NAME)
    assert result.exit_code == 0, result.stderr
    text = (project.root / "notebooks" / f"{NAME}.ipynb").read_text()
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    assert "papermill" not in text
    assert str(project.root) not in text
    assert [cell.metadata for cell in notebook.cells] == [{"tags": ["parameters"]}, {}]
    assert [cell.execution_count for cell in notebook.cells] == [1, 2]
    assert [o.text for o in notebook.cells[1].outputs] == [f"{defaults(SOURCE)['beta']}\n"]
    assert notebook.metadata.kernelspec.name == "python3"
    project.call("render", NAME)
    assert (project.root / "notebooks" / f"{NAME}.ipynb").read_text() == text


def test_a_notebook_that_fails_is_not_rendered(project):
    target = project.root / "notebooks" / f"{NAME}.ipynb"
    project.body("1 / 0")
    before = target.read_text()
    assert "ZeroDivisionError: division by zero" in one_error(project.call("render", NAME), code=1)
    assert target.read_text() == before


def test_publish_copies_figures_and_numbers_only(project):
    folder, target = project.results / "default" / NAME, project.root / "figures" / "default" / NAME
    error = one_error(project.call("publish", "--profile", "default"))
    assert error.endswith(f"run: preflab run {NAME} --profile default")
    assert not target.exists()
    folder.mkdir(parents=True)
    for name in ("a.png", "a.json", "metrics.json", "provenance.json", "notebook.ipynb"):
        (folder / name).write_text(name)
    target.mkdir(parents=True)
    (target / "old.png").touch()
    result = project.call("publish", "--profile", "default")
    assert result.exit_code == 0, result.stderr
    published = {f.name: f.read_text() for f in target.iterdir()}
    assert published == {name: name for name in ("a.png", "a.json", "metrics.json", "provenance.json")}


# --- pairs and cache ------------------------------------------------------------------------------


def test_pairs_reports_every_objective_or_one():
    runner = CliRunner()
    both = runner.invoke(app, ["pairs", "world:conflict"])
    assert both.exit_code == 0, both.stderr
    assert [line.split()[1] for line in both.stdout.splitlines() if line.startswith("objective")] == [
        "helpful",
        "harmless",
    ]
    one = runner.invoke(app, ["pairs", "world:conflict", "--objective", "harmless"])
    assert one.stdout.strip() == both.stdout.split("\n\n")[1].strip()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["world:atlantis"], "world:atlantis: no such world, expected one of: conflict"),
        (["world:conflict", "--objective", "kind"], "expected one of: helpful, harmless"),
        (["conflict"], "expected world:NAME, hub:REPO or files:PATH"),
    ],
)
def test_pairs_of_what_does_not_exist(words, expected):
    assert expected in one_error(CliRunner().invoke(app, ["pairs", *words]))


def test_clean_cache_removes_the_cache_and_nothing_else(project):
    for name in ("cache/base-1", "default/x"):
        (project.results / name).mkdir(parents=True)
    assert project.call("clean-cache").exit_code == 0
    assert [p.name for p in project.results.iterdir()] == ["default"]
