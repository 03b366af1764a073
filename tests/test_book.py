"""The site: what its pages are made of, and, where it is built, whether its links lead somewhere."""

import importlib
import json
import re
from pathlib import Path

import nbformat
import pytest

from making import api, check, claims, docstrings, links, slides, stage

ROOT = Path(__file__).resolve().parents[1]
GLOSSARY = (ROOT / "docs" / "glossary.md").read_text()
TEACHING = (ROOT / "docs" / "teaching.md").read_text()
FOUND = claims.judged()


@pytest.fixture(scope="module")
def pages():
    return stage.pages()


# --- links ----------------------------------------------------------------------------------------


def test_a_link_leads_to_the_page_of_a_file_and_else_to_the_file():
    text = "[a](lib/preflab/rules.py) ![b](figures/full/x/y.png) [c](https://d.org) [e](#f) [g](RESULTS.md#h)"
    assert links.rewritten(text, "README.md", "readme.md") == (
        "[a](api/preflab.rules.rst) ![b](../../figures/full/x/y.png) [c](https://d.org) [e](#f) [g](results.md#h)"
    )
    assert links.rewritten("[a](../lib/preflab/methods)", "docs/glossary.md", "glossary.md") == (
        "[a](api/preflab.methods.rst)"
    )


def test_every_link_of_every_page_leads_to_a_page_or_a_file(pages):
    folder, lost = ROOT / links.SOURCE, []
    made = {(folder / name).resolve() for name in pages}
    for name, text in pages.items():
        for target in links.LINK.findall(text) if name.endswith(".md") else ():
            path = ((folder / name).parent / target).resolve()
            if path not in made and not path.exists():
                lost.append((name, target))
    assert not lost


# --- the library ----------------------------------------------------------------------------------


def test_every_module_is_in_one_room_and_rooms_are_in_the_readmes_order():
    readme, library = (ROOT / "README.md").read_text(), api.modules(ROOT)
    rooms = api.rooms(readme, library)
    assert sorted(module for room in rooms for module in room.modules) == sorted(library)
    assert all(room.modules for room in rooms)
    assert [room.title for room in rooms][4:7] == ["weightings", "methods", "rules"]
    by_title = {room.title: room.modules for room in rooms}
    assert "lib/preflab/data/worlds/drawn.py" in by_title["data/worlds"]
    assert not any("worlds" in module for module in by_title["data"])


def test_a_docstring_keeps_its_words_its_formulas_and_its_arguments():
    docstring = """G of |A| and c_i, see `preflab.rules` and `tau`:
    c = r * A

not learned    the gain is 0

Args:
    batches: input_ids of
        arXiv:2512.00778.

- one *thing* of a * b*c"""
    assert docstrings.as_rst(docstring.split("\n")) == [
        r"G of \|A\| and c\_i, see :py:obj:`preflab.rules` and ``tau``:",
        *["", ".. code-block:: text", "", "   c = r * A", ""],
        *[".. code-block:: text", "", "   not learned    the gain is 0", ""],
        *["**Args**", "", r"- ``batches``: input\_ids of"],
        "  `arXiv:2512.00778 <https://arxiv.org/abs/2512.00778>`__.",
        *["", r"- one *thing* of a \* b\*c", ""],
    ]


def test_the_fields_of_a_class_are_shown_as_the_source_has_them():
    from preflab.methods.dpo import DPO

    assert docstrings.fields_of(DPO) == ["beta: Positive = 0.1  # strength of the pull to the reference"]


# --- claims ---------------------------------------------------------------------------------------


def test_every_published_claim_has_a_page_with_every_verdict(pages):
    published = [(path, claim) for path in (ROOT / "figures").glob("*/*/metrics.json") for claim in _claims(path)]
    assert set(FOUND) == {claim["id"] for _, claim in published} >= {*map("S{}".format, range(1, 9))}
    for path, claim in published:
        row = rf"^\| {path.parts[-3]} \| \*\*{re.escape(claim['verdict'])}\*\* \| .*\[{path.parts[-2]}\]"
        assert re.search(row, pages[f"claims/{claim['id']}.md"], re.M), (path, claim["id"])


def _claims(path):
    return json.loads(path.read_text())["claims"]


def test_the_full_run_comes_first(pages):
    assert all(runs[0].profile == "full" for name, runs in FOUND.items() if any(r.profile == "full" for r in runs))
    assert FOUND["D2"][0].claim.verdict == "not reproduced" and "| 0.87 |" in pages["claims/D2.md"]
    assert FOUND["S2"][0].notebook == "06_forgetting_map"  # which is registered; 01 is not


@pytest.mark.parametrize("name", [name for name in FOUND if name[0] != "B"])  # 90 publishes no picture
def test_a_claim_has_a_picture_and_its_rule(name, pages):
    page = pages[f"claims/{name}.md"]
    assert "![" in page
    assert all(api.as_cell(run.claim.statistic) in page for run in FOUND[name][:1])


# --- texts ----------------------------------------------------------------------------------------


def test_the_glossary_names_what_the_library_has():
    rows = re.findall(r"\[([a-z_0-9]+(?:\.\w+)*)\]\(\.\./lib/(preflab/[\w/]+)\.py\)", GLOSSARY)
    assert len(rows) > 50
    for name, path in rows:
        module = path.removesuffix("/__init__").replace("/", ".")
        rest = f"preflab.{name}".removeprefix(module).strip(".")
        assert f"preflab.{name}".startswith(module), name
        assert not rest or hasattr(importlib.import_module(module), rest), name


def test_the_lesson_plan_names_headings_and_exercises_that_are_there():
    notebooks = {path.name[:2]: "".join(map(_text, _cells(path))) for path in (ROOT / "notebooks").glob("*.ipynb")}
    headings = re.findall(r"\b(\d\d), \*([^*]+)\*(?: (?:to|and) \*([^*]+)\*)?", TEACHING)
    assert len(headings) >= 12
    for number, *titles in headings:
        assert all(re.search(rf"^##+ {re.escape(t)}$", notebooks[number], re.M) for t in titles if t), (number, titles)
    exercises = re.findall(r"exercise (\d) of\s+\[(\d\d)\]", TEACHING)
    assert len(exercises) > 7
    for exercise, number in exercises:
        assert f"\n{exercise}. **" in notebooks[number].split("## Exercises")[1], (number, exercise)


def _cells(path):
    return nbformat.read(path, as_version=4).cells


def _text(cell):
    return f"{cell.source}\n" if cell.cell_type == "markdown" else ""


# --- slides ---------------------------------------------------------------------------------------


def test_a_heading_begins_a_slide_and_code_stays_with_its_text():
    new = nbformat.v4
    cells = [new.new_markdown_cell("# A\ntext\n## B\ntext"), new.new_code_cell("## c"), new.new_markdown_cell("text")]
    made = slides.pieces(cells)
    assert [cell.source for cell in made] == ["# A\ntext\n", "## B\ntext", "## c", "text"]
    assert [c.metadata["slideshow"]["slide_type"] for c in made] == ["slide", "slide", "-", "subslide"]


# --- the built site -------------------------------------------------------------------------------


def test_the_check_finds_what_is_broken(tmp_path):
    (tmp_path / "a.html").write_text(
        '<p id="here"><a href="#here"></a><a href="b.html#there"></a><a href="https://c.org"></a><img src="d.png">'
    )
    (tmp_path / "b.html").write_text('<p id="there"><script src="e.js"></script>')
    (tmp_path / "d.png").touch()
    (tmp_path / "e.js").touch()
    assert check.faults(tmp_path) == []
    (tmp_path / "b.html").write_text('<script src="//f.org/e.js"></script><a href="g.html"></a><a href="#h"></a>')
    assert check.faults(tmp_path) == [
        "a.html: b.html#there leads nowhere",
        "b.html: loads //f.org/e.js from elsewhere",
        "b.html: #h leads nowhere",
        "b.html: g.html leads nowhere",
    ]


def test_no_link_of_the_built_site_is_broken():
    pytest.importorskip("sphinx", reason="the site's packages are not installed: make book does it")
    if not (ROOT / "book" / "html" / "index.html").exists():
        pytest.skip("the site is not built: make book does it")
    assert check.faults(ROOT / "book" / "html") == []
