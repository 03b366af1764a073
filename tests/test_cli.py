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
import torch
from typer.testing import CliRunner

import preflab
from preflab import paths
from preflab.running import notebooks
from preflab.running.cli import app
from preflab.running.reading import defaults, find_notebook, resolve

NAME = "01_sequential_settings"
SOURCE = Path(__file__).resolve().parents[1] / "notebooks" / "src" / f"{NAME}.py"
VALUES = "\n".join(f"{key} = {value!r}" for key, value in defaults(SOURCE).items())
COMMAND = "from preflab.running.cli import app; app()"


def _heed_ctrl_c():
    """A shell that starts the tests in the background has Ctrl-C ignored, and every child would inherit that. A
    terminal's Ctrl-C goes to the whole group of processes: give the command one of its own."""
    for ending in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(ending, signal.SIG_DFL)
    os.setpgid(0, 0)


class Project:
    """A checkout with one notebook, `body` after its parameters cell, and one file of parameters: profile "quick"."""

    def __init__(self, root):
        self.root, self.results = root, root / "results"
        for folder in ("notebooks/src", "params/quick"):
            (root / folder).mkdir(parents=True)
        (root / "pyproject.toml").write_text('[project]\nname = "preflab"\n')
        self.yaml = root / "params" / "quick" / f"{NAME}.yaml"
        self.yaml.write_text("dpo: {beta: 0.2}\n")
        self.body("print(dpo)")

    def body(self, *cells, values=VALUES):
        text = "\n\n".join([f'# %% tags=["parameters"]\n{values}', *(f"# %%\n{cell}" for cell in cells)])
        (self.root / "notebooks" / "src" / f"{NAME}.py").write_text(text + "\n")
        nbformat.write(jupytext.reads(text, "py:percent"), self.root / "notebooks" / f"{NAME}.ipynb")

    def call(self, *words):
        """In this process."""
        return CliRunner().invoke(app, words)

    def run(self, *words):
        """In this process, the profile of one YAML file."""
        return self.call("run", NAME, "--profile", "quick", *words)

    def start(self, *words):
        """In a process of its own, so that also what a kernel writes to stderr is seen."""
        command = [sys.executable, "-c", COMMAND, *words]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, cwd=self.root, text=True, preexec_fn=_heed_ctrl_c, **pipes)

    def files(self):
        """Every file and folder under results/ but the profile's own."""
        return sorted(str(p.relative_to(self.results)) for p in self.results.glob("*/*"))

    def printed(self, name=NAME, profile="quick"):
        """What the last cell of an executed notebook has printed."""
        executed = nbformat.read(self.results / profile / name / "notebook.ipynb", as_version=4)
        return "".join(output.text for output in executed.cells[-1].outputs if output.get("name") == "stdout")


@pytest.fixture
def project(tmp_path, monkeypatch):
    root = tmp_path / "checkout"
    root.mkdir()
    monkeypatch.chdir(root)
    return Project(root)


def one_error(result, code=2):
    """The error line of a command that refused."""
    assert result.exit_code == code, result.output
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: ")
    return result.stderr[len("error: ") : -1]


def test_the_version():
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"preflab {preflab.__version__}\n")


# --- refusals before anything starts --------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["-p", "learning_rat=0.1"], "-p: learning_rat=0.1: no such parameter"),
        (["-p", "train_pairs=1e6"], "-p: train_pairs='1e6': input should be a valid integer (text in YAML"),
        (["-p", "train_pairs=true"], "-p: train_pairs=True: input should be a valid integer"),
        (["-p", "pair_training={learning_rate: 1e-6}"], "-p: pair_training.learning_rate='1e-6': input should be a va"),
        (["-p", "dpo={bet: 1.0}"], "-p: dpo.bet=1.0: no such parameter, expected one of: beta"),
        (["-p", "dpo=0.3"], "-p: dpo=0.3: expected a section, which maps names to values"),
        (["-p", "seeds"], "-p seeds: expected key=value"),
        (["-p", "seeds=[0]", "-p", "seeds=[1]"], "-p seeds=[1]: seeds is given twice"),
        (["-p", "seeds=[0"], "-p seeds=[0: not readable as YAML"),
        (["-p", "data="], "-p: data=None: input should be a valid string"),
        (["-p", "name=../x"], "-p: name='../x': string should match pattern"),
        (["--profile", "ful"], "profile 'ful': no such profile in params/, expected one of: default, quick"),
        (["--profile", "../params/quick"], "profile '../params/quick': no such profile in params/, expected one of"),
        (["--profile", "quick/"], "profile 'quick/': no such profile in params/"),
        (["--profile", ".."], "profile '..': no such profile in params/"),
        (["--profile", ""], "profile '': no such profile in params/"),
        (["--profile", "*"], "profile '*': no such profile in params/"),
    ],
)
def test_a_run_is_refused_before_it_starts(project, words, expected):
    assert expected in one_error(project.run(*words))
    assert not project.results.exists()


def test_a_profile_is_a_folder_of_params_and_no_path_to_one(project, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for folder in (elsewhere, project.root):
        (folder / f"{NAME}.yaml").write_text("seeds: [0]\n")
    for profile in (str(elsewhere), "../../elsewhere", "..", str(project.yaml.parent)):
        for command in (["run", NAME], ["reproduce"], ["publish"]):
            error = one_error(project.call(*command, "--profile", profile))
            assert error == f"profile {profile!r}: no such profile in params/, expected one of: default, quick"


def test_a_device_that_is_not_there_is_refused_before_anything_starts(project, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    error = one_error(project.run("-p", "hardware={device: cuda}"))
    assert error.startswith("device='cuda': not on this machine, expected one of: auto, ")
    assert not project.results.exists()


def test_a_bad_file_is_named_and_not_blamed_on_the_command_line(project):
    project.yaml.write_text("dpo: {beta: fast}\n")
    error = one_error(project.run("-p", "dpo={beta: 0.3}"))
    assert error == f"{project.yaml}: dpo.beta='fast': input should be a valid number"
    project.yaml.write_text("name: 5\n")
    assert one_error(project.run()) == f"{project.yaml}: name=5: input should be a valid string"


def test_unknown_names(project):
    assert "expected one of: " + NAME in one_error(project.call("run", "02_g"))
    assert one_error(project.call("run", "02_g", "--profile", "quick")) == (
        f"params/quick/02_g.yaml: no such file, expected one of: {NAME}"
    )
    project.yaml.with_name("09_other.yaml").write_text("seeds: [0]\n")
    assert "09_other: no notebook of this name" in one_error(project.call("run", "09_other", "--profile", "quick"))
    assert "expected one of: " + NAME in one_error(project.call("render", "02_g"))


def test_a_parameters_cell_that_is_no_python_is_named(project):
    project.body("print(1)", values=f"{VALUES}\n%matplotlib inline")
    text = json.loads((project.root / "notebooks" / f"{NAME}.ipynb").read_text())
    line = len("".join(text["cells"][0]["source"]).splitlines())
    assert one_error(project.run()) == f"parameters cell, line {line}: invalid syntax, expected Python"


def test_results_that_cannot_be_written(project):
    project.results.write_text("a file where the folder should be")
    assert f"results folder {project.results / 'quick'}: not writable" in one_error(project.run())
    assert project.results.read_text() == "a file where the folder should be"


def test_check(project):
    result = project.call("check", str(project.yaml))
    assert (result.exit_code, result.stdout) == (0, f"{project.yaml}: ok\n")
    project.yaml.write_text("seeds: [0]\nseeds: [1]\n")
    assert one_error(project.call("check", str(project.yaml))).endswith(
        "line 2: key 'seeds' is given twice, expected once"
    )
    assert "no such file" in one_error(project.call("check", str(project.yaml.with_suffix(".yml"))))


def test_the_longest_notebook_name_wins(project):
    for stem in ("01_seq", "01_sequential_settings_more"):
        (project.root / "notebooks" / f"{stem}.ipynb").write_text("{}")
    assert find_notebook(f"{NAME}_hh").stem == NAME
    assert find_notebook("01_sequential_settings_more_hh").stem == "01_sequential_settings_more"


# --- where the checkout is ------------------------------------------------------------------------


def test_the_checkout_is_found_from_any_folder_of_it(project, monkeypatch):
    for folder in (project.root, project.root / "notebooks" / "src", project.yaml.parent):
        monkeypatch.chdir(folder)
        assert paths.project_root() == project.root and paths.results_root() == project.results


def test_outside_any_checkout_the_one_that_the_package_is_installed_from_serves(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert paths.project_root() == Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    "words",
    [["run", NAME], ["reproduce"], ["render", NAME], ["publish"], ["sync"], ["cache", "check"], ["cache", "clear"]],
)
def test_a_package_that_was_installed_without_a_checkout_says_that_one_is_needed(words, tmp_path, monkeypatch):
    """`pip install .` puts the package into site-packages, where there are no notebooks."""
    site = tmp_path / "lib" / "python3" / "site-packages" / "preflab"
    monkeypatch.setattr(paths, "__file__", str(site / "paths.py"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    error = one_error(CliRunner().invoke(app, words))
    assert error == (
        f"no checkout of preflab at {tmp_path / 'work'} or above: clone the project and run from its folder"
    )
    (tmp_path / "work" / "pyproject.toml").write_text('[project]\nname = "other"\n')
    for folder in ("notebooks", "params"):
        (tmp_path / "work" / folder).mkdir()
    assert "no checkout of preflab" in one_error(CliRunner().invoke(app, words))  # of another project
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["notebooks", "params", "pyproject.toml", "work"]


def test_a_package_without_a_checkout_still_reads_pairs_and_says_its_version(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "__file__", str(tmp_path / "site-packages" / "preflab" / "paths.py"))
    monkeypatch.chdir(tmp_path)
    for words in (["--version"], ["pairs", "world:compatible", "--objective", "truthfulness"]):
        assert CliRunner().invoke(app, words).exit_code == 0


# --- runs -----------------------------------------------------------------------------------------

RUN = f"""from preflab.experiments.sequential import Sequential
parameters = Sequential.from_notebook(globals())
import sys
from preflab.running.parallel import Progress
from preflab.running.run import Run
run = Run(parameters)
progress = Progress("stages", 1)
progress.advance()
value = parameters.dpo.beta
claim = dict(id="S1", statement="It holds.", value=value, interval=[0.1, 0.5], verdict="reproduced")
run.finish([claim], {{"tiny": 5e-7}}, {{}}, {{"interpreter": sys.executable == {sys.executable!r}}})"""


def test_a_run_writes_its_folder_and_shows_progress_and_verdicts(project, tmp_path, monkeypatch):
    """Also under an installed "python3" kernel of some other interpreter, which must not be used."""
    other = tmp_path / "jupyter" / "kernels" / "python3"
    other.mkdir(parents=True)
    (other / "kernel.json").write_text('{"argv": ["/bin/false"], "display_name": "x", "language": "python"}')
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    project.body(RUN)
    stdout, stderr = (process := project.start("reproduce", "--profile", "quick")).communicate()
    assert process.returncode == 0, stderr
    assert stderr.splitlines() == [f"{NAME}  stages: 0 of 1", f"{NAME}  stages: 1 of 1"]
    assert stdout.splitlines()[1].split() == ["S1", "reproduced", "0.2", "[0.1,", "0.5]", "It", "holds."]
    folder = project.results / "quick" / NAME
    assert project.files() == [f"quick/{NAME}"]
    assert {f.name for f in folder.iterdir()} == {"notebook.ipynb", "metrics.json", "provenance.json"}
    assert json.loads((folder / "metrics.json").read_text())["metrics"] == {"tiny": 5e-7}
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["command"] == f"preflab run {NAME} --profile quick"
    assert provenance["parameters"]["dpo"]["beta"] == 0.2
    assert provenance["data"]["interpreter"]


def test_the_default_profile_has_the_notebooks_own_values_and_no_file(project):
    project.body(RUN)
    result = project.call("run", NAME)
    assert result.exit_code == 0, result.stderr
    assert project.files() == [f"default/{NAME}"]
    parameters = json.loads((project.results / "default" / NAME / "provenance.json").read_text())["parameters"]
    own = resolve(SOURCE, {}, "x")
    assert (parameters["dpo"], parameters["train_pairs"]) == ({"beta": own.dpo.beta}, own.train_pairs)
    again = project.call("reproduce")
    assert again.exit_code == 0 and again.stderr == f"{NAME}  up to date\n"


def test_what_is_up_to_date_is_not_run_again(project):
    """`reproduce` goes by the cells, the parameters and the code; `run` always runs."""
    project.body(RUN)
    folder = project.results / "quick" / NAME

    def runs_again(*words):
        before = (folder / "metrics.json").stat().st_ino if folder.exists() else None
        result = project.call(*words, "--profile", "quick")
        assert result.exit_code == 0, result.stderr
        again = (folder / "metrics.json").stat().st_ino != before
        assert ("up to date" in result.stderr) == (not again)
        assert "S1" in result.stdout
        return again

    assert runs_again("reproduce")
    assert not runs_again("reproduce")
    assert runs_again("run", NAME)
    project.body(RUN + "  # changed")
    assert runs_again("reproduce")
    project.yaml.write_text("dpo: {beta: 0.3}\n")
    assert runs_again("reproduce")
    assert not runs_again("reproduce")


def test_what_decides_whether_results_are_up_to_date(monkeypatch):
    def inputs(cell="print(1)", **given):
        return notebooks.inputs(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)]), given)

    before = inputs()
    assert inputs() == before  # cells have new ids
    assert inputs("print(2)") != before and inputs(dpo={"beta": 0.7}) != before

    class Other:
        def whole_hash(self):
            return "other"

    for name, other in (("package", Other), ("library_versions", lambda: {"torch": "0"})):
        with monkeypatch.context() as changed:
            changed.setattr(notebooks, name, other)
            assert inputs() != before


def test_results_from_data_outside_the_project_are_never_up_to_date(project):
    """Whether the file of parameters names it or the notebook's own cell."""
    outside = {"x": ["files:a", "b", "c"]}
    folder = project.results / "quick" / NAME
    folder.mkdir(parents=True)
    for values, given, expected in (
        (VALUES, {}, True),
        (VALUES, {"settings": outside}, False),
        (VALUES, {"alpaca_eval": "hub:a/b"}, False),
        (f"{VALUES}\nsettings = {outside}", {}, False),
    ):
        project.body("print(1)  # files: and hub: of text alone are none", values=values)
        notebook = nbformat.read(project.root / "notebooks" / f"{NAME}.ipynb", as_version=4)
        (folder / "provenance.json").write_text(json.dumps({"inputs": notebooks.inputs(notebook, given)}))
        assert notebooks.up_to_date(notebook, given, folder) == expected
    assert not notebooks.up_to_date(notebook, {}, project.results / "none")


def test_a_value_of_the_command_line_reaches_the_notebook(project):
    kept = project.results / "quick" / "mine.failed.ipynb"
    kept.parent.mkdir(parents=True)
    kept.touch()
    project.body(f"{RUN}\nprint(value)")
    result = project.run("-p", "dpo={beta: 0.75}", "-p", "name=mine")
    assert result.exit_code == 0, result.stderr
    assert project.files() == ["quick/mine"]  # an older failure of that name is gone
    assert {f.name for f in (project.results / "quick" / "mine").iterdir()} == {
        *("notebook.ipynb", "metrics.json", "provenance.json")
    }
    assert project.printed("mine") == "0.75\n"
    command = json.loads((project.results / "quick" / "mine" / "provenance.json").read_text())["command"]
    assert command == f"preflab run {NAME} --profile quick -p 'dpo={{beta: 0.75}}' -p name=mine"
    assert "mine  stages: 1 of 1" in result.stderr


@pytest.fixture
def handed(monkeypatch):
    """What is handed to notebooks instead of executing them."""
    seen = []

    def execute(notebook, given, folder, command, show):
        folder.mkdir(parents=True, exist_ok=True)
        seen.append(given)

    monkeypatch.setattr(notebooks, "execute", execute)
    return seen


def test_a_section_of_the_command_line_is_laid_over_the_files(project, handed):
    """Rows, which a reader names, are no section: they take the place of the file's."""
    project.yaml.write_text(
        "pair_training: {epochs: 3, batch_size: 8}\n"
        "base: {seed: 4, sft: {steps: 9, batch_size: 5}}\n"
        "settings: {a: [world:conflict, helpful, harmless]}\n"
    )
    words = ["pair_training={batch_size: 4}", "base={sft: {steps: 7}}", "lora={rank: 2}", "seeds=[3]"]
    words += ["settings={b: [world:safety, safer, better]}"]
    result = project.run(*(word for given in words for word in ("-p", given)))
    assert result.exit_code == 0, result.stderr
    assert handed == [
        {
            "profile": "quick",
            "name": NAME,
            "pair_training": {"epochs": 3, "batch_size": 4},
            "base": {"seed": 4, "sft": {"steps": 7, "batch_size": 5}},
            "settings": {"b": ["world:safety", "safer", "better"]},
            "lora": {"rank": 2},
            "seeds": [3],
        }
    ]


def test_a_folder_of_data_of_the_command_line_is_relative_to_the_working_folder(project, handed, monkeypatch):
    """As the paths of `preflab pairs` are. In a file of parameters it begins at the checkout."""
    own = project.root / "own" / "hh"
    own.mkdir(parents=True)
    for cwd, given in ((project.root, "own/hh"), (own.parent, "hh"), (own, "."), (project.yaml.parent, str(own))):
        monkeypatch.chdir(cwd)
        result = project.run("-p", f"data={given}")
        assert result.exit_code == 0, result.stderr
        assert handed[-1]["data"] == "own/hh"
    project.yaml.write_text("data: own/hh\n")
    assert project.run().exit_code == 0 and handed[-1]["data"] == "own/hh"
    settings = {"x": ["files:rows.jsonl", "a", "b"]}
    assert resolve(SOURCE, {"data": "own/hh", "settings": settings}, "x").located("files:rows.jsonl") == (
        f"files:{own / 'rows.jsonl'}"
    )


def test_a_model_of_the_command_line_is_relative_to_the_working_folder_if_it_is_there(project, handed, monkeypatch):
    (project.root / "own" / "mine").mkdir(parents=True)
    (project.root / "own" / "mine" / "config.json").touch()
    (project.root / "own" / "tiny").mkdir()
    monkeypatch.chdir(project.root / "own")
    monkeypatch.setattr("preflab.stages.given.model_in_cache", lambda repo, revision: repo == "org/on-the-hub")
    monkeypatch.setattr("preflab.stages.given.check_folder", lambda *given: None)  # the folder is empty
    for given, expected in (("mine", "own/mine"), ("org/on-the-hub", "org/on-the-hub"), ("tiny", "tiny")):
        result = project.run("-p", f"base={{model: {given}}}")
        assert result.exit_code == 0, result.stderr
        assert handed[-1]["base"]["model"] == expected


def test_a_model_goes_to_the_checkout_unless_another_folder_is_given(project, monkeypatch):
    asked = []
    monkeypatch.setattr("preflab.pretrained.fetch", lambda *given: asked.append(given) or "words")
    result = project.call("model", "smollm2")
    assert (result.exit_code, result.stdout) == (0, f"{project.root / 'models' / 'smollm2'}: words\n")
    assert project.call("model", "smollm2", "--to", "here").exit_code == 0
    assert asked == [("smollm2", project.root / "models" / "smollm2"), ("smollm2", Path("here"))]


def test_bad_input_inside_a_notebook_is_one_line_and_leaves_what_was_there(project):
    earlier = project.results / "quick" / NAME
    earlier.mkdir(parents=True)
    project.body(
        "from preflab.experiments.sequential import Sequential\nfrom preflab.running.run import Run\n"
        "run = Run(Sequential.from_notebook(globals()))\n(run.staging / 'half').touch()\n"
        "import atexit, logging, os\n"  # asyncio tells of tasks that the end of a kernel destroys
        "atexit.register(lambda: logging.getLogger('asyncio').isEnabledFor(logging.ERROR) and os.write(2, b'a task'))",
        "from preflab.errors import BadInput\nraise BadInput('data.jsonl: row 3: missing column')",
    )
    stdout, stderr = (process := project.start("run", NAME, "--profile", "quick")).communicate()
    assert (process.returncode, stdout) == (2, "")
    assert stderr == "error: data.jsonl: row 3: missing column\n"
    assert project.files() == [f"quick/{NAME}"]
    assert not list(earlier.iterdir())


def test_other_errors_keep_the_failed_notebook(project):
    project.body("raise KeyError('a\\nb')")
    error = one_error(project.run(), code=1)
    failed = project.results / "quick" / f"{NAME}.failed.ipynb"
    assert error.startswith("KeyError: ")
    assert str(failed) in error
    assert project.files() == [f"quick/{NAME}.failed.ipynb"]
    assert "KeyError" in failed.read_text()


def test_out_of_memory_is_one_line(project):
    project.body("raise MemoryError('wanted 3 GB\\nand more')")
    assert one_error(project.run(), code=1) == "out of memory: wanted 3 GB"
    assert project.files() == []


def test_a_killed_kernel_is_one_line_and_leaves_nothing_half_made(project):
    project.body(
        "import os, pathlib, signal, sys\nfrom preflab.running.records import staging_of\nprint(sys.argv)\n"
        f"staging_of(pathlib.Path({str(project.results)!r}, profile, name), os.getpid()).mkdir()",
        "os.kill(os.getpid(), signal.SIGKILL)",
    )
    assert "out of memory?" in one_error(project.run(), code=1)
    assert project.files() == [f"quick/{NAME}.failed.ipynb"]
    told = nbformat.read(project.results / "quick" / f"{NAME}.failed.ipynb", as_version=4).cells[-2].outputs[0].text
    assert f"{project.results}/quick/.{NAME}." in told  # the file with its ports, which goes with that folder


def test_a_kernel_that_is_killed_before_it_answers_is_one_line(project, monkeypatch):
    def spec(folder, *_):
        folder.mkdir(parents=True)
        argv = [sys.executable, "-c", "raise SystemExit(1)"]
        (folder / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "x", "language": "python"}))

    monkeypatch.setattr(notebooks, "write_kernel_spec", spec)
    assert "the notebook's process was killed" in one_error(project.run(), code=1)
    assert project.files() == [f"quick/{NAME}.failed.ipynb"]


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGQUIT, 131)])
def test_a_stopped_run_leaves_nothing_and_no_process(project, sent, code):
    project.body(
        "import os, pathlib, subprocess, sys, time\n"
        "worker = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"pathlib.Path({str(project.root)!r}, 'pids').write_text(f'{{os.getpid()}} {{worker.pid}}')\n"
        "time.sleep(600)"
    )
    process, pids = project.start("run", NAME, "--profile", "quick"), project.root / "pids"
    wait_until(lambda: pids.exists() and len(pids.read_text().split()) == 2)
    os.killpg(process.pid, sent)  # as a terminal does
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == code
    said = "error: interrupted; what is trained is kept, and the same command goes on from there\n"
    assert (stdout, stderr) == ("", said if sent == signal.SIGINT else "")
    assert project.files() == []
    wait_until(lambda: not any(running(int(pid)) for pid in pids.read_text().split()))


def test_under_nohup_a_closed_terminal_ends_nothing(project):
    kept = {ending: signal.getsignal(ending) for ending in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGQUIT, signal.SIG_DFL)
        assert project.call("cache", "check").exit_code == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        assert callable(signal.getsignal(signal.SIGQUIT))
    finally:
        for ending, handler in kept.items():
            signal.signal(ending, handler)


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
    project.body("import sys; print(train_pairs); print(' ', file=sys.stderr)")
    result = project.call("render", NAME)
    assert result.exit_code == 0, result.stderr
    text = (project.root / "notebooks" / f"{NAME}.ipynb").read_text()
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    assert "papermill" not in text
    assert str(project.root) not in text
    assert [cell.metadata for cell in notebook.cells] == [{"tags": ["parameters"]}, {}]
    assert [cell.execution_count for cell in notebook.cells] == [1, 2]
    assert [o.text for o in notebook.cells[1].outputs] == [f"{defaults(SOURCE)['train_pairs']}\n"]
    assert notebook.metadata.kernelspec.name == "python3"
    project.call("render", NAME)
    assert (project.root / "notebooks" / f"{NAME}.ipynb").read_text() == text


def test_a_notebook_that_fails_is_not_rendered(project):
    target = project.root / "notebooks" / f"{NAME}.ipynb"
    project.body("1 / 0")
    before = target.read_text()
    assert "ZeroDivisionError: division by zero" in one_error(project.call("render", NAME), code=1)
    assert target.read_text() == before


def test_what_was_edited_in_jupyterlab_comes_to_the_sources_without_outputs(project):
    source, notebook = (project.root / "notebooks" / f for f in (f"src/{NAME}.py", f"{NAME}.ipynb"))
    assert project.call("render", NAME).exit_code == 0
    project.call("sync")
    before = source.read_text()
    result = project.call("sync")
    assert (result.exit_code, result.stdout, source.read_text()) == (0, "", before)
    edited = nbformat.read(notebook, as_version=4)
    edited.cells[-1].source = "print('edited')"
    nbformat.write(edited, notebook)
    result = project.call("sync")
    assert (result.exit_code, result.stdout) == (0, f"{source}\n")
    assert source.read_text() == before.replace("print(dpo)", "print('edited')")
    assert "{}" not in source.read_text().partition("print")[2]  # no output of the cell


def test_solutions_are_rendered_and_synced_in_folders_of_their_own(project):
    root, name = project.root / "notebooks", f"{NAME}_solutions"
    source, notebook = root / "src" / "solutions" / f"{name}.py", root / "solutions" / f"{name}.ipynb"
    assert "no notebook of this name in notebooks/src/solutions/" in one_error(project.call("render", name))
    source.parent.mkdir()
    source.write_text("# %%\nprint(6 * 7)\n")
    before = (root / f"{NAME}.ipynb").read_text()
    assert project.call("render", name).exit_code == 0
    rendered = nbformat.read(notebook, as_version=4)
    assert [output.text for output in rendered.cells[0].outputs] == ["42\n"]
    assert (root / f"{NAME}.ipynb").read_text() == before
    rendered.cells[0].source = "print('edited')"
    nbformat.write(rendered, notebook)
    assert str(source) in project.call("sync").stdout
    assert jupytext.read(source).cells[0].source == "print('edited')" and not (source.parents[1] / source.name).exists()


def test_publish_copies_figures_and_numbers_only(project):
    folder, target = project.results / "quick" / NAME, project.root / "figures" / "quick" / NAME
    error = one_error(project.call("publish", "--profile", "quick"))
    assert error.endswith(f"run: preflab run {NAME} --profile quick")
    assert not target.exists()
    folder.mkdir(parents=True)
    for name in ("a.png", "a.json", "metrics.json", "provenance.json", "notebook.ipynb"):
        (folder / name).write_text(name)
    target.mkdir(parents=True)
    (target / "old.png").touch()
    result = project.call("publish", "--profile", "quick")
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


def test_pairs_of_a_made_world():
    result = CliRunner().invoke(app, ["pairs", "world:made(-0.5,0.85)"])
    assert result.exit_code == 0, result.stderr
    assert [line.split()[1] for line in result.stdout.splitlines() if line.startswith("objective")] == [
        "first",
        "second",
    ]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["world:atlantis"], "world:atlantis: no such world, expected one of: conflict"),
        (["world:made(3,0.8)"], "world:made(3,0.8): compatibility=3.0: expected a number from -1 to 1"),
        (["world:conflict", "--objective", "kind"], "expected one of: helpful, harmless"),
        (["conflict"], "expected world:NAME, hub:REPO or files:PATH"),
    ],
)
def test_pairs_of_what_does_not_exist(words, expected):
    assert expected in one_error(CliRunner().invoke(app, ["pairs", *words]))


def test_clear_removes_the_cache_and_nothing_else(project):
    for name in ("cache/Base-1", "quick/x"):
        (project.results / name).mkdir(parents=True)
    assert project.call("cache", "clear").exit_code == 0
    assert [p.name for p in project.results.iterdir()] == ["quick"]
    assert project.call("cache", "check").stdout == "0 entries, all as stored\n"


def test_a_long_loop_tells_every_fifteen_seconds_how_much_is_left(monkeypatch):
    from preflab import progress

    now = iter([100, 104, 116, 117, 200, 1000, 1016])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    pace = progress.Pace()
    assert [pace.left(step, 64) for step in (1, 2, 5, 6)] == ["", "", "about 4 min left", ""]
    assert pace.left(26, 64) == "about 3 min left"  # 25 steps in 100 s, 38 to go: 152 s
    assert [pace.left(step, 64) for step in (17, 18)] == ["", "about 12 min left"]  # another run, resumed
