"""CLAIMS.md is what the committed results, registrations and ledger.yaml make of it."""

import re
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from preflab.claims import INCONCLUSIVE, NOT_REPRODUCED, REPRODUCED, SMALLER
from preflab.errors import BadInput
from preflab.paths import project_root
from preflab.reviewing import rendering
from preflab.reviewing.history import Change, changes, claims_in
from preflab.reviewing.ledger import FILE, checked, ledger
from preflab.reviewing.paper_values import PaperValue, values_in
from preflab.reviewing.rendering import CLAIMS, mismatches, notebook_of, runs_of, written
from preflab.reviewing.results import published
from preflab.running.cli import app
from preflab.running.reading import read_yaml

ROOT = project_root()


@pytest.fixture(scope="module")
def results():
    return published()


def changed(result, **of_first_claim):
    """A result whose first claim was judged otherwise."""
    first, *others = result.found.claims
    claims = [first.model_copy(update=of_first_claim), *others]
    return replace(result, found=result.found.model_copy(update={"claims": claims}))


def section_of(text, claim):
    return text.split(f"\n### {claim} · ")[1].split("\n### ")[0]


# --- the committed file ---------------------------------------------------------------------------


def test_the_committed_ledger_is_what_is_written_anew():
    assert (ROOT / CLAIMS).read_text(encoding="utf-8") == written(), "run: preflab ledger"


def test_every_claim_of_a_result_has_an_entry_and_every_entry_a_result(results):
    assert mismatches(ledger(), runs_of(results, ledger())) == []


def test_a_claim_that_only_one_side_knows_is_named(results):
    runs = runs_of(results, ledger())
    less = ledger().model_copy(update={"claims": {k: v for k, v in ledger().claims.items() if k != "S7"}})
    assert mismatches(less, runs) == ["no claim S7, which figures/full/05_mechanism has"]
    del runs["D4"]
    assert mismatches(ledger(), runs) == ["claim D4: no committed result has it"]


def test_no_ledger_is_written_if_a_claim_is_missing(results, monkeypatch):
    monkeypatch.setattr(rendering, "published", lambda: [r for r in results if "05" not in r.provenance.name])
    done = CliRunner().invoke(app, ["ledger"])
    assert (done.exit_code, done.stderr) == (2, "error: ledger.yaml: claim S7: no committed result has it\n")


def test_the_command_writes_the_file_in_the_checkout(tmp_path, monkeypatch):
    from preflab import paths

    monkeypatch.setattr(rendering, "written", lambda: "anew\n")
    monkeypatch.setattr(paths, "project_root", lambda: tmp_path)
    done = CliRunner().invoke(app, ["ledger"])
    assert (done.exit_code, done.stdout) == (0, f"{tmp_path / CLAIMS}\n")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [(CLAIMS, "anew\n")]


# --- what is computed -----------------------------------------------------------------------------


def test_verdicts_numbers_and_commits_are_those_of_the_results(results, monkeypatch):
    (full,) = [r for r in results if r.folder == ROOT / "figures/full/02_g_dynamics"]
    other = changed(full, verdict="made up", value=7.25, interval=(7.0, 7.5), power=0.123)
    provenance = full.provenance.model_copy(update={"git": full.provenance.git.model_copy(update={"commit": "c" * 40})})
    other = replace(other, provenance=provenance)
    monkeypatch.setattr(rendering, "published", lambda: [other if r is full else r for r in results])
    (row,) = [line for line in section_of(written(), "D1").splitlines() if line.startswith("| [full/")]
    for told in ("| made up |", "| 7.25 [7, 7.5] |", "| 0.12 |", "| as committed |", f"| `{'c' * 10}` |"):
        assert told in row


@pytest.mark.parametrize(("recorded", "told"), [("0" * 64, "an older one"), (None, "not recorded")])
def test_a_run_that_has_read_another_registration_is_told(results, monkeypatch, recorded, told):
    (full,) = [r for r in results if r.folder == ROOT / "figures/full/02_g_dynamics"]
    metrics = {**full.found.metrics, "registration": recorded}
    other = replace(full, found=full.found.model_copy(update={"metrics": metrics}))
    monkeypatch.setattr(rendering, "published", lambda: [other if r is full else r for r in results])
    assert f"| {told} | [six_panels.png](figures/full/02_g_dynamics" in section_of(written(), "D2")


def test_a_run_that_was_judged_by_another_rule_has_another_letter(results, monkeypatch):
    others = [changed(r, statistic="Another rule.") if r.provenance.profile == "full" else r for r in results]
    monkeypatch.setattr(rendering, "published", lambda: others)
    section = section_of(written(), "D10")
    rows = {line.split("]")[0]: line.split(" | ")[1] for line in section.splitlines() if line.startswith("| [")}
    assert len(set(rows.values())) == 3 and "Rule a, of" in section and ": Another rule." in section


def test_the_notebook_of_a_run_is_told_by_its_name():
    assert notebook_of("02_g_dynamics_hh", ledger()) == "02_g_dynamics"
    with pytest.raises(BadInput, match="no notebook for the run 99_none"):
        notebook_of("99_none", ledger())


# --- what is written by hand ----------------------------------------------------------------------


def test_no_verdict_is_written_by_hand():
    text = FILE.read_text(encoding="utf-8").lower()
    assert not [verdict for verdict in (REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE, SMALLER) if verdict in text]


@pytest.mark.parametrize(
    ("of_question", "words"),
    [
        ({"state": "solved"}, "ledger.yaml: questions.0.state: input should be 'looked at', 'in part' or 'open'"),
        ({"verdict": "yes"}, "ledger.yaml: questions.0.verdict: extra inputs are not permitted"),
        ({"claims": ["S1", "S99"]}, "ledger.yaml: claims=S99 of 'Why?': no such claim"),
    ],
)
def test_an_entry_that_is_wrong_is_named(of_question, words):
    question = {"paper": "S", "kind": "open question", "source": "ours", "text": "Why?", "state": "open"}
    content = {**read_yaml(FILE), "questions": [{**question, **of_question}]}
    with pytest.raises(BadInput, match=f"^{re.escape(words)}$"):
        checked(content)


def test_every_notebook_that_judges_a_claim_has_its_rules(results):
    assert {file.stem for file in (ROOT / "notebooks").glob("*.ipynb")} == set(ledger().notebooks)
    judging = {notebook_of(result.provenance.name, ledger()) for result in results if result.claims}
    assert {name for name, notebook in ledger().notebooks.items() if notebook.rules} == judging
    assert all((ROOT / ledger().notebooks[name].rules).is_file() for name in judging)


@pytest.mark.parametrize("claim", ledger().claims)
def test_the_figures_that_show_a_claim_are_committed(claim):
    for notebook, figure in ledger().claims[claim].shown.items():
        assert list((ROOT / "figures").glob(f"*/{notebook}*/{figure}.png")), (notebook, figure)


def test_a_choice_with_a_parameter_has_a_value(results):
    found = [(notebook_of(r.provenance.name, ledger()), r) for r in results]
    for choice in ledger().choices:
        assert not choice.parameter or rendering._values(choice, found) != rendering.NOTHING, choice


def test_what_is_open_does_not_claim_to_be_answered():
    for question in ledger().questions:
        assert question.state == "open" or (question.answer and (question.links or question.claims)), question.text
        assert not (question.state == "open" and question.claims), question.text


# --- what changed, and what the paper profile chooses ---------------------------------------------


RESULTS = """# Results

| D1 | not | this | one |

## What changed, and why

| | before | then | why |
|---|---|---|---|
| D7 | a | b | First. |
| D8, D10 to D11 | c | d | The same. And more. |
| some outcome | e | f | The same. |

## Later

| D7 | not | this | either |
"""


def test_what_changed_is_read_from_the_tables_of_its_section():
    first, more = Change("a", "b", "First."), Change("c", "d", "First. And more.")
    assert changes(RESULTS) == {"D7": [first], "D8": [more], "D10": [more], "D11": [more]}
    assert claims_in("S2 of 06, D3 to D5") == ["S2", "D3", "D4", "D5"]


def test_results_without_their_history_are_refused():
    with pytest.raises(BadInput, match=r"RESULTS\.md: no section 'What changed, and why'"):
        changes("# Results\n")


def test_values_that_are_marked_as_ours_are_found_with_their_reason():
    text = """# choice: no value
train: 8  # choice: not stated
base:
  model: big  # "big"
  sft:
    steps: 3  # choice
rows:  # choice: these
  a: {b: 1}  # one digest says choices matter
settings: {c: [1, 2]}  # "so"; choice: two of five
"""
    assert list(values_in(text)) == [
        PaperValue("train", "8", "not stated"),
        PaperValue("base.sft.steps", "3", ""),
        PaperValue("rows", "a section", "these"),
        PaperValue("settings", "{c: [1, 2]}", "two of five"),
    ]
