"""What is committed agrees with itself: environment, notebooks, parameters, figures."""

import ast
import re
import symtable
import sys
import tomllib
from dataclasses import is_dataclass
from importlib.metadata import packages_distributions, version
from pathlib import Path

import jupytext
import nbformat
import pytest
import typer
import yaml
from jupytext.config import load_jupytext_configuration_file
from jupytext.formats import long_form_multiple_formats
from jupytext.paired_paths import paired_paths
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from preflab.experiments import EXPERIMENTS
from preflab.running.reading import defaults, read_yaml, resolve

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DECLARED = PROJECT["project"]["dependencies"]
DEV = PROJECT["project"]["optional-dependencies"]["dev"]
BOOK = PROJECT["project"]["optional-dependencies"]["book"]
CLUSTER = PROJECT["project"]["optional-dependencies"]["cluster"]
NOTEBOOKS = sorted([*(ROOT / "notebooks").glob("*.ipynb"), *(ROOT / "notebooks" / "solutions").glob("*.ipynb")])
SOURCES = sorted((ROOT / "notebooks" / "src").glob("*.py"))  # of notebooks that have parameters
SOLUTIONS = sorted((ROOT / "notebooks" / "src" / "solutions").glob("*.py"))
PARAMS = sorted((ROOT / "params").glob("*/*.yaml"))


def relative(path):
    return str(path.relative_to(ROOT))


def lock(name="requirements.lock"):
    lines = [line for line in (ROOT / name).read_text().splitlines() if line[:1] != "#"]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line) for line in lines), "a pin is NAME==VERSION"
    pins = {canonicalize_name(name): pin for name, pin in (line.split("==") for line in lines)}
    assert len(pins) == len(lines)
    return pins


def environment():
    return yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]


# --- environment ----------------------------------------------------------------------------------


@pytest.mark.parametrize("text", DECLARED + DEV)
def test_a_dependency_is_pinned_within_its_range(text):
    requirement = Requirement(text)
    assert requirement.specifier.contains(lock()[canonicalize_name(requirement.name)])


@pytest.mark.parametrize("text", BOOK)
def test_a_dependency_of_the_site_is_pinned_in_a_lock_of_its_own(text):
    requirement, pins = Requirement(text), lock("requirements-book.lock")
    assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)])
    assert not set(pins) & set(lock()), "a package has one pin"


@pytest.mark.parametrize("text", CLUSTER)
def test_snakemake_is_pinned_in_the_lock_of_an_environment_of_its_own(text):
    requirement, path = Requirement(text), ROOT / "requirements-cluster.lock"
    assert requirement.specifier.contains(lock(path.name)[canonicalize_name(requirement.name)])
    assert repr(text).replace('"', "'") in path.read_text()  # how it is renewed


def test_the_environment_equals_the_lock():
    if Path(sys.prefix).resolve() != (ROOT / ".venv").resolve():
        pytest.skip("not in the .venv that make env builds from the lock")
    wrong = {name: (version(name), pin) for name, pin in lock().items() if Version(version(name)).public != pin}
    assert not wrong, "installed, pinned"


def test_conda_installs_the_lock_and_the_project():
    *conda, pip = environment()
    assert "pip" in conda
    assert pip == {"pip": ["-r requirements.lock", "-e ."]}


def test_python_versions_agree():
    (python,) = [text for text in environment() if str(text).startswith("python=")]
    oldest = PROJECT["project"]["requires-python"].removeprefix(">=")
    assert python == f"python={oldest}"
    assert f"({', '.join(oldest.split('.'))})" in (ROOT / "Makefile").read_text()


def test_every_import_of_the_library_is_declared():
    distributions = packages_distributions()
    declared = {canonicalize_name(Requirement(text).name) for text in DECLARED}
    undeclared = set()
    for path in [*(ROOT / "lib").rglob("*.py"), *SOURCES, *SOLUTIONS]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            for top in {name.split(".")[0] for name in names} - {"preflab"} - sys.stdlib_module_names:
                if not declared & {canonicalize_name(d) for d in distributions.get(top, [])}:
                    undeclared.add((relative(path), top))
    assert not undeclared


def test_the_version_is_the_same_everywhere():
    from preflab import __version__

    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == __version__
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text()


# --- notebooks ------------------------------------------------------------------------------------


@pytest.fixture(params=NOTEBOOKS, ids=relative)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_every_source_is_rendered_and_every_notebook_has_a_source():
    assert {source_of(n) for n in NOTEBOOKS} == {*SOURCES, *SOLUTIONS}
    assert {s.stem for s in SOURCES} == set(EXPERIMENTS)
    assert {s.stem.removesuffix("_solutions") for s in SOLUTIONS} <= set(EXPERIMENTS)


def source_of(notebook):
    folder = ROOT / "notebooks"
    return folder / "src" / notebook.relative_to(folder).with_suffix(".py")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=relative)
def test_notebook_and_source_are_in_sync(path):
    def cells(file):
        return [(cell.cell_type, cell.source, cell.metadata.get("tags")) for cell in jupytext.read(file).cells]

    assert cells(path) == cells(source_of(path))


def test_jupytext_pairs_the_folders():
    """An edit saved in JupyterLab reaches the file that is reviewed, and the other way round."""
    config = load_jupytext_configuration_file(str(ROOT / "pyproject.toml"))
    for notebook in (ROOT / "notebooks" / "a.ipynb", ROOT / "notebooks" / "solutions" / "a.ipynb"):
        formats = long_form_multiple_formats(config.default_formats(str(notebook)))
        for file, fmt in ((notebook, "ipynb"), (source_of(notebook), "py:percent")):
            paired = [p for p, _ in paired_paths(str(file), fmt, formats)]
            assert paired == [str(notebook), str(source_of(notebook))]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=relative)
def test_links_of_a_notebook_lead_somewhere(path):
    text = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown")
    links = re.findall(r"\]\(((?!http)[^)]+)\)", text)
    assert not [link for link in links if not (path.parent / link).exists()]


def test_a_notebook_is_valid_and_executed_in_order(notebook):
    nbformat.validate(notebook)
    assert [cell.execution_count for cell in code_cells(notebook)] == list(range(1, len(code_cells(notebook)) + 1))
    assert any(cell.outputs for cell in code_cells(notebook))


def test_a_notebook_holds_nothing_of_papermill_the_clock_or_stderr(notebook):
    assert notebook.metadata.kernelspec.name == "python3"
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    for cell in notebook.cells:
        assert set(cell.metadata) <= {"tags"}
        assert "injected-parameters" not in cell.metadata.get("tags", [])
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=relative)
def test_saving_an_untouched_notebook_in_jupyterlab_changes_nothing(path, tmp_path):
    """Through the very code that JupyterLab's server opens and saves with, and a kernel's own words on its language."""
    from ipykernel.ipkernel import IPythonKernel
    from jupyter_server.services.contents.largefilemanager import LargeFileManager

    (tmp_path / path.name).write_bytes(path.read_bytes())
    manager = LargeFileManager(root_dir=str(tmp_path))
    model = manager.get(path.name)
    committed = model["content"].metadata["language_info"]
    said = {k: v for k, v in IPythonKernel.language_info.items() if k != "version"}
    model["content"].metadata["language_info"] = said | {"version": committed["version"]}  # of the reader's Python
    manager.save({"type": "notebook", "format": "json", "content": model["content"]}, path.name)
    assert (tmp_path / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_a_source_has_one_parameters_cell_and_its_defaults_are_valid(path):
    cells = jupytext.read(path).cells
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in cells) == 1
    resolved = resolve(path, {}, relative(path))
    assert (resolved.profile, resolved.name) == ("default", path.stem)


# --- parameters -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PARAMS, ids=relative)
def test_a_parameter_file_is_valid_and_belongs_where_it_is(path):
    (source,) = [s for s in SOURCES if path.stem.startswith(s.stem)]
    values = {"profile": path.parent.name, "name": path.stem, **read_yaml(path)}
    resolved = resolve(source, values, relative(path))
    assert (resolved.profile, resolved.name) == (path.parent.name, path.stem)


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_a_parameters_cell_is_short_and_a_section_in_it_is_empty(path):
    """What differs in one notebook from a section's defaults stands in its class, where papermill cannot undo it."""
    model, given = EXPERIMENTS[path.stem], defaults(path)
    sections = {name for name, field in model.model_fields.items() if is_dataclass(field.default)}
    assert all(given[name] == {} for name in sections & set(given))
    assert sections - {"hardware"} <= set(given) and len(set(given) - sections) <= 20


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_no_variable_of_a_notebook_has_a_parameters_name(path):
    """Else a second Run All in one kernel would find the variable where the parameter was."""
    cells = [c.source for c in jupytext.read(path).cells if c.cell_type == "code"]
    code = "\n".join(c for c in cells if "profile: str" not in c)
    bound = {s.get_name() for s in symtable.symtable(code, path.name, "exec").get_symbols() if s.is_assigned()}
    assert not bound & set(EXPERIMENTS[path.stem].model_fields)


# --- the house ------------------------------------------------------------------------------------


LIBRARY = sorted((ROOT / "lib").rglob("*.py"))


@pytest.mark.parametrize("path", LIBRARY, ids=relative)
def test_a_file_and_its_functions_are_short(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 350
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    body = {f.name: f.end_lineno - f.body[0].lineno + 1 for f in functions}  # without the signature
    assert not {name: lines for name, lines in body.items() if lines > 55}


def test_the_library_reads_no_environment_variable_of_its_own():
    """Settings come through parameters. (Variables of other libraries are set, to keep them quiet.)"""
    found = {relative(path) for path in LIBRARY if re.search(r"environ(\.get|\[)[(\"']*PREFLAB", path.read_text())}
    assert not found


# --- texts ----------------------------------------------------------------------------------------


def test_no_text_names_a_folder_of_somebodys_machine():
    machine = re.compile(r"(?<![\w.~-])/(" + "|".join(["work", "root", "home", "Users", "tmp"]) + r")/\w")
    names = ("lib", "notebooks", "params", "tests", "figures", "docs", "workflow", ".ci")
    files = [f for name in names for f in (ROOT / name).rglob("*") if f.is_file() and "__pycache__" not in f.parts]
    files += [f for f in ROOT.iterdir() if f.is_file() and f.name != ".git"]  # which is a file in a git worktree
    found = {}
    for file in files:
        if file.suffix != ".png" and (hit := machine.search(file.read_text())):
            found[relative(file)] = hit[0]
    assert not found


CLAIM_ROW = re.compile(r"^\| ([SD]\d+) \| .* \| (\S+?)(?: \[(\S+), (\S+)\])? \| \**([a-z ]+?)\** \|$", re.M)
NAMES = ("README.md", "RESULTS.md", "CLAIMS.md", "REVIEWING.md", "CONTRIBUTING.md", "CHANGELOG.md")
DOCUMENTS = {name: (ROOT / name).read_text() for name in NAMES}
FULL = sorted((ROOT / "figures" / "full").glob("*/metrics.json"))


def told_claims():
    """By claim, what is told of it: once for each notebook that judges it."""
    told = {}
    for id_, value, low, high, verdict in CLAIM_ROW.findall(DOCUMENTS["RESULTS.md"]):
        told.setdefault(id_, []).append((value, low, high, verdict))
    return told


def test_results_tell_of_every_full_run_and_of_nothing_else():
    claims = [claim["id"] for path in FULL for claim in yaml.safe_load(path.read_text())["claims"]]
    assert sorted(claims) == sorted(id_ for id_, rows in told_claims().items() for _ in rows)


def is_told(row, claim):
    value, *ends, verdict = row
    numbers = [float(text.replace("−", "-")) for text in (value, *ends) if text]
    measured = [claim["value"], *(claim["interval"] or [])]
    if None in measured:
        return verdict == claim["verdict"]
    return verdict == claim["verdict"] and numbers == pytest.approx(measured, abs=0.006)


@pytest.mark.parametrize("path", FULL, ids=relative)
def test_results_tell_the_verdicts_of_the_full_run(path):
    told = told_claims()
    for claim in yaml.safe_load(path.read_text())["claims"]:
        assert any(is_told(row, claim) for row in told[claim["id"]]), claim["id"]


def test_results_tell_what_the_worlds_are():
    from preflab.data.worlds import WORLDS

    for world in WORLDS.values():
        relation = world.compatibility()
        strengths = " / ".join(f"{objective.strength:.2f}" for objective in world.objectives)
        numbers = f"| {relation['correlation']:+.2f} | {relation['disagreement']:.0%} | {strengths} |"
        row = rf"^\| {world.name} \| .* {re.escape(numbers.replace('-', '−'))}$"
        assert re.search(row, DOCUMENTS["RESULTS.md"], re.M), numbers


def test_readme_is_short_and_holds_no_results():
    assert len(re.findall(r"\S*\w\S*", DOCUMENTS["README.md"])) <= 1200
    assert not CLAIM_ROW.search(DOCUMENTS["README.md"])
    assert "](RESULTS.md)" in DOCUMENTS["README.md"]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_of_readme_and_results_lead_somewhere(name):
    links = set(re.findall(r"\]\(((?!http)[^)]+)\)", DOCUMENTS[name]))
    assert not [link for link in links if not (ROOT / link).exists()]


@pytest.mark.parametrize("name", sorted(set(DOCUMENTS) - {"CHANGELOG.md"}))  # which names commands that are gone
def test_commands_that_readme_and_results_name_exist(name):
    """`preflab X`, `make X` and every file of parameters, where code is set as code."""
    from preflab.running.cli import app

    commands = typer.main.get_command(app).commands
    code = "\n".join(re.findall(r"```.*?```|`[^`\n]+`", DOCUMENTS[name], re.S))
    assert set(re.findall(r"\bpreflab ([a-z]+)\b", code)) <= set(commands)
    assert set(re.findall(r"\bpreflab cache ([a-z]+)\b", code)) <= set(commands["cache"].commands)
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"\bmake ([a-z-]+)", code)) <= targets
    for run, profile in re.findall(r"\bpreflab run (\w+)(?: --profile (\w+))?", code):
        files = [f"params/{profile}/{run}.yaml"] if profile else [f"notebooks/{run}.ipynb"]
        assert run == "NOTEBOOK" or all((ROOT / file).exists() for file in files), (run, profile)


@pytest.mark.parametrize("folder", sorted((ROOT / "figures").glob("*/*")), ids=relative)
def test_published_figures_have_their_provenance(folder):
    """Every picture has a sidecar with its own hash, and comes from a clean, known commit."""
    import hashlib

    pictures = sorted(folder.glob("*.png"))
    for picture in pictures:
        sidecar = yaml.safe_load(picture.with_suffix(".json").read_text())
        assert sidecar["sha256"] == hashlib.sha256(picture.read_bytes()).hexdigest()
        assert re.fullmatch(r"[0-9a-f]{40}", sidecar["git"]["commit"])
        assert sidecar["git"]["dirty"] is False
    assert (folder / "metrics.json").exists() and (folder / "provenance.json").exists()
