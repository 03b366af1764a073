"""What is committed agrees with itself: environment, notebooks, parameters, figures."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions, version
from pathlib import Path

import jupytext
import nbformat
import pytest
import yaml
from jupytext.config import load_jupytext_configuration_file
from jupytext.formats import long_form_multiple_formats
from jupytext.paired_paths import paired_paths
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from preflab.parameters import MODELS, defaults, read_yaml, resolve

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DECLARED = PROJECT["project"]["dependencies"]
DEV = PROJECT["project"]["optional-dependencies"]["dev"]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SOURCES = sorted((ROOT / "notebooks" / "src").glob("*.py"))
PARAMS = sorted((ROOT / "params").glob("*/*.yaml"))


def relative(path):
    return str(path.relative_to(ROOT))


def lock():
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if line[:1] != "#"]
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
    for path in [*(ROOT / "lib").rglob("*.py"), *SOURCES]:
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
    assert {n.stem for n in NOTEBOOKS} == {s.stem for s in SOURCES} == set(MODELS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=relative)
def test_notebook_and_source_are_in_sync(path):
    def cells(file):
        return [(cell.cell_type, cell.source, cell.metadata.get("tags")) for cell in jupytext.read(file).cells]

    assert cells(path) == cells(path.parent / "src" / f"{path.stem}.py")


def test_jupytext_pairs_the_folders():
    """An edit saved in JupyterLab reaches the file that is reviewed, and the other way round."""
    config = load_jupytext_configuration_file(str(ROOT / "pyproject.toml"))
    formats = long_form_multiple_formats(config.default_formats(str(ROOT / "notebooks" / "a.ipynb")))
    for file, fmt in (("a.ipynb", "ipynb"), ("src/a.py", "py:percent")):
        paired = [p for p, _ in paired_paths(str(ROOT / "notebooks" / file), fmt, formats)]
        assert paired == [str(ROOT / "notebooks" / "a.ipynb"), str(ROOT / "notebooks" / "src" / "a.py")]


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
def test_the_default_profile_is_the_notebooks_own_values(path):
    given = read_yaml(ROOT / "params" / "default" / f"{path.stem}.yaml")
    assert {**defaults(path), **given} == defaults(path)


# --- texts ----------------------------------------------------------------------------------------


def test_no_text_names_a_folder_of_somebodys_machine():
    machine = re.compile(r"(?<![\w.~-])/(" + "|".join(["work", "root", "home", "Users", "tmp"]) + r")/\w")
    names = ("lib", "notebooks", "params", "tests", "figures", ".ci")
    files = [f for name in names for f in (ROOT / name).rglob("*") if f.is_file() and "__pycache__" not in f.parts]
    files += [f for f in ROOT.iterdir() if f.is_file()]
    found = {}
    for file in files:
        if file.suffix != ".png" and (hit := machine.search(file.read_text())):
            found[relative(file)] = hit[0]
    assert not found


CLAIM_ROW = re.compile(r"^\| ([SD]\d+) \| .* \| (\S+?)(?: \[(\S+), (\S+)\])? \| \**([a-z ]+?)\** \|$", re.M)


def readme_claims():
    return {id_: (value, low, high, verdict) for id_, value, low, high, verdict in CLAIM_ROW.findall(readme())}


def readme():
    return (ROOT / "README.md").read_text()


FULL = sorted((ROOT / "figures" / "full").glob("*/metrics.json"))


def test_readme_tells_of_every_full_run_and_of_nothing_else():
    claims = [claim["id"] for path in FULL for claim in yaml.safe_load(path.read_text())["claims"]]
    assert sorted(claims) == sorted(readme_claims())


@pytest.mark.parametrize("path", FULL, ids=relative)
def test_readme_tells_the_verdicts_of_the_full_run(path):
    told = readme_claims()
    for claim in yaml.safe_load(path.read_text())["claims"]:
        value, low, high, verdict = told[claim["id"]]
        assert verdict == claim["verdict"], claim["id"]
        assert float(value.replace("−", "-")) == pytest.approx(claim["value"], abs=0.006), claim["id"]
        if claim["interval"] and None not in claim["interval"]:
            ends = [float(end.replace("−", "-")) for end in (low, high)]
            assert ends == pytest.approx(claim["interval"], abs=0.006), claim["id"]


def test_readme_tells_what_the_worlds_are():
    from preflab.worlds import WORLDS

    for world in WORLDS.values():
        relation = world.compatibility()
        strengths = " / ".join(f"{objective.strength:.2f}" for objective in world.objectives)
        numbers = f"| {relation['correlation']:+.2f} | {relation['disagreement']:.0%} | {strengths} |"
        assert re.search(rf"^\| {world.name} \| .* {re.escape(numbers.replace('-', '−'))}$", readme(), re.M), numbers


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(((?!http)[^)]+)\)", (ROOT / "README.md").read_text()))))
def test_readme_links_lead_somewhere(link):
    assert (ROOT / link).exists()


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
