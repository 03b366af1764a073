"""Rated responses: from a reader's own table of ratings to pairs, their splits and the agreement of objectives."""

import json
import random
from collections import Counter
from dataclasses import replace
from itertools import combinations

import datasets
import pytest
from test_pairs import SHARED, folder, message, prompts, triples, write
from typer.testing import CliRunner

from preflab.data import schemas
from preflab.data.agreement import Agreement, agreements
from preflab.data.pairs import load_pairs, objectives_of
from preflab.data.sources import Table
from preflab.errors import BadInput
from preflab.running.cli import app
from preflab.running.reading import find_notebook, resolve


def rated(prompt, response, **ratings):
    return {"prompt": prompt, "response": response, **ratings}


TEST = [rated("test", "yes", kind=1, brief=1), rated("test", "no", kind=0, brief=0)]


def many(prompts, replies, seed=0, levels=3, **others):
    """A table of random ratings, its rows in random order."""
    rng = random.Random(seed)
    rows = [
        rated(f"prompt {p}", f"reply {r}", kind=rng.randrange(levels), brief=rng.randrange(levels), **others)
        for p in range(prompts)
        for r in range(replies)
    ]
    rng.shuffle(rows)
    return rows


def everything(loaded):
    return {*triples(loaded.train), *triples(loaded.test)}


# --- from rows to pairs ---------------------------------------------------------------------------


def test_a_table_of_ratings_by_hand(tmp_path):
    """Rows of one prompt are not adjacent, and one prompt has outer white space."""
    train = [
        rated("p", "a", kind=3, brief=1),
        rated("q", "d", kind=0, brief=2.5),
        rated("p", "b", kind=1, brief=1.0),
        rated("lonely", "e", kind=1, brief=1),
        rated(" p\n", "c", kind=3, brief=-2e3),
        rated("q", "f", kind=None, brief=2.25),
        rated("q", "g", kind="N/A", brief=None),
    ]
    source = folder(tmp_path, train, TEST)
    assert objectives_of(source) == ["kind", "brief"]
    kind, brief = (load_pairs(source, objective) for objective in ("kind", "brief"))
    assert kind.report.schema == "rated" and kind.report.rows_read == 9
    assert triples(kind.train) == [("p", "a", "b"), ("p", "c", "b")]
    assert kind.report.dropped == {"tied ratings": 1, "unrated": 3, "prompt with one response": 1}
    assert triples(brief.train) == [("p", "a", "c"), ("p", "b", "c"), ("q", "d", "f")]
    assert brief.report.dropped == {"tied ratings": 1, "unrated": 2, "prompt with one response": 1}
    assert triples(kind.test) == triples(brief.test) == [("test", "yes", "no")]
    assert kind.report.balance["chosen_first"] == pytest.approx(2 / 3)  # a and yes stood first, c did not
    assert set(brief.train["objective"]) == {"brief"}


def test_true_is_1_and_false_is_0(tmp_path):
    rows = [rated("p", "a", safe=True), rated("p", "b", safe=False), rated("p", "c", safe=1)]
    test = [rated("test", "x", safe=False), rated("test", "y", safe=True)]
    loaded = load_pairs(folder(tmp_path, rows, test), "safe")
    assert triples(loaded.train) == [("p", "a", "b"), ("p", "c", "b")]
    assert loaded.report.dropped == {"tied ratings": 1}


def test_prompts_and_replies_may_be_messages(tmp_path):
    prompt = [message("system", ""), message("user", "hi"), message("assistant", "hello"), message("user", "eggs?")]
    said = [message("assistant", "boil")]
    rows = [
        rated(prompt, said, kind=2),
        rated(prompt, "fry", kind=1),
        rated(prompt[1:], [*prompt, message("assistant", "none")], kind=0),  # the messages repeat the prompt
        rated(prompt, [message("user", "eggs"), *said], kind=5),
        rated(prompt, [message("user", "boil")], kind=5),
        rated(prompt, [], kind=5),
        rated("", "an answer to nothing", kind=1),
        rated("", "another", kind=2),
    ]
    loaded = load_pairs(folder(tmp_path, rows, TEST), "kind")
    assert [(good, bad) for _, good, bad in triples(loaded.train)] == [
        ("boil", "fry"),
        ("boil", "none"),
        ("fry", "none"),
    ]
    assert loaded.train[0]["prompt"] == prompt[1:]
    assert loaded.report.dropped == {"reply is not one assistant message": 3, "empty turn in prompt": 1}


def test_the_example_of_the_docstring_is_read(tmp_path):
    (_, example) = [line for line in schemas.__doc__.splitlines() if line.strip().startswith("{")]
    row = json.loads(example)
    worse = row | {"response": "No idea.", "helpful": 1}
    source = folder(tmp_path, [row, worse], [row | {"prompt": "x"}, worse | {"prompt": "x"}])
    assert objectives_of(source) == ["helpful", "brief"]
    assert triples(load_pairs(source, "helpful").train) == [(row["prompt"], row["response"], "No idea.")]


# --- which schema, which objectives ---------------------------------------------------------------


def test_columns_of_numbers_are_objectives_and_bookkeeping_is_none(tmp_path):
    """Also those that only a later row rates. An attribute of HelpSteer2 alone is not yet its format."""
    marks = {"id": 1, "seed": 7, "Prompt_ID": 3, "row_index": 2, "Unnamed: 0": 0, "system": "A", "idea": 0, "why": None}
    rows = [rated("p", "a", coherence=None, **marks), rated("p", "b", coherence=2, kind=True, **marks)]
    assert objectives_of(write(tmp_path / "own.jsonl", rows)) == ["idea", "coherence", "kind"]


@pytest.mark.parametrize("suffix", ["jsonl.gz", "json", "parquet"])
def test_files_of_any_format(tmp_path, suffix):
    source = write(tmp_path / f"own.{suffix}", many(40, 3))
    reference = write(tmp_path / "again.jsonl", many(40, 3))
    assert objectives_of(source) == ["kind", "brief"]
    assert load_pairs(source, "kind").report.fingerprint == load_pairs(reference, "kind").report.fingerprint


def test_ratings_on_the_hub(monkeypatch):
    splits = datasets.DatasetDict(train=datasets.Dataset.from_list(many(40, 3)))
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: splits)
    monkeypatch.setattr("huggingface_hub.dataset_info", lambda *args, **options: None)
    assert objectives_of("hub:a/b") == ["kind", "brief"]
    assert load_pairs("hub:a/b", "brief").report.schema == "rated"


@pytest.mark.parametrize(
    ("extra", "schema"),
    [
        ({"chosen": "y", "rejected": "n"}, "trl"),
        ({"response_0": "y", "response_1": "n"}, "pku-saferlhf"),
        (dict.fromkeys(schemas.HELPSTEER_ATTRIBUTES, 1), "helpsteer2"),
        (dict.fromkeys(schemas.HELPSTEER_ATTRIBUTES[1:], 1), "rated"),
    ],
)
@pytest.mark.parametrize("position", [0, 1])
def test_any_other_schema_that_fits_comes_first(extra, schema, position):
    """Even if the first row lacks its columns: then the generator names that row."""
    rows = [rated("p", "a", kind=1, **extra)]
    rows.insert(position, rated("p", "b", kind=1))
    assert schemas.schema_of([Table("own", "train", rows)]) == schema


# --- bad ratings ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rating", ["4", "high", float("nan"), float("inf"), [1], {}, ""])
def test_a_bad_rating_is_one_line_with_its_row_and_column(tmp_path, rating):
    rows = [rated("p", "unspeakable", kind=1), rated("p", "b", kind=rating)]
    for position in (0, 1):
        source = write(tmp_path / f"{position}.jsonl", rows if position else rows[::-1])
        with pytest.raises(BadInput) as caught:
            load_pairs(source, "kind")
        line = str(caught.value)
        assert f"{position}.jsonl: row {position + 1}: key 'kind' is {rating!r}; expected a finite number" in line
        assert "\n" not in line and "unspeakable" not in line


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (rated("p", "b"), "row 2: key 'kind' is missing; expected a finite number, or null if unrated"),
        (rated(3, "b", kind=1), "row 2: key 'prompt' is of type int; expected a str"),
        (rated("p", 3, kind=1), "row 2: key 'response' is of type int; expected a str"),
        ({"prompt": "p", "kind": 1}, "row 2: key 'response' is missing; expected a str"),
    ],
)
def test_a_bad_row_is_named(tmp_path, row, expected):
    with pytest.raises(BadInput, match=expected):
        load_pairs(write(tmp_path / "own.jsonl", [rated("p", "a", kind=1), row]), "kind")


def test_an_objective_that_is_no_column_of_numbers_lists_those_that_are(tmp_path):
    source = write(tmp_path / "own.jsonl", many(20, 3, system="A"))
    with pytest.raises(BadInput, match="objective is 'system'; expected one of: kind, brief"):
        load_pairs(source, "system")


# --- a limit of pairs a prompt --------------------------------------------------------------------


def test_a_limit_keeps_so_many_pairs_of_each_prompt_and_counts_the_rest(tmp_path):
    source = write(tmp_path / "own.jsonl", many(60, 6, levels=50))
    every, few = load_pairs(source, "kind"), load_pairs(source, "kind", pairs_per_prompt=4)
    counts = Counter(json.dumps(prompt) for split in (few.train, few.test) for prompt in split["prompt"])
    assert len(counts) == 60 and set(counts.values()) == {4}
    lost = sum(every.report.pairs_kept.values()) - 60 * 4
    assert few.report.dropped == every.report.dropped | {"over pairs_per_prompt": lost}
    assert everything(few) < everything(every)
    enough = load_pairs(source, "kind", pairs_per_prompt=15)  # six replies have 15 pairs
    assert enough.report == every.report


def test_a_limit_depends_on_no_order_of_rows_no_seed_and_no_label(tmp_path):
    rows = many(60, 6, levels=50)
    for row in rows:
        row["unkind"] = -row["kind"]

    def kept(rows, objective="kind", limit=4, **options):
        source = write(tmp_path / "own.jsonl", rows)
        return everything(load_pairs(source, objective, pairs_per_prompt=limit, **options))

    once = kept(rows)
    assert kept(rows[::-1]) == kept(rows, seed=1) == once
    assert kept(rows, "unkind") == {(prompt, bad, good) for prompt, good, bad in once}
    assert kept(rows, limit=2) < once < kept(rows, limit=5)


def test_a_limit_favours_no_reply_and_no_pair(tmp_path):
    """Every pair of six replies is kept by about 4 in 15 of 600 prompts: 160 +- 11 (one standard deviation)."""
    rows = [rated(f"prompt {p}", f"reply {r}", kind=r) for p in range(600) for r in range(6)]
    loaded = load_pairs(write(tmp_path / "own.jsonl", rows), "kind", pairs_per_prompt=4)
    counts = Counter((good, bad) for _, good, bad in everything(loaded))
    assert len(counts) == 15 and all(115 < n < 205 for n in counts.values())


def test_a_limit_goes_for_every_schema_and_comes_before_the_size_of_the_split(tmp_path):
    rows = [{"prompt": f"p {n % 40}", "chosen": f"good {n}", "rejected": "bad"} for n in range(200)]
    source = write(tmp_path / "own.jsonl", rows)
    report = load_pairs(source, "default", test_share=0.3, pairs_per_prompt=2, max_train=30).report
    assert report.dropped["over pairs_per_prompt"] == 120
    assert report.pairs_kept["train"] == 30 and report.dropped["over max_train"] + 30 + report.pairs_kept["test"] == 80
    with pytest.raises(BadInput, match="pairs_per_prompt is 0; expected at least 1, or none for all"):
        load_pairs(source, "default", pairs_per_prompt=0)


def test_every_reply_is_asked_once_whether_it_fits(tmp_path):
    """It is in many pairs, and to tokenize it is slow. Pairs that do not fit do not count against the limit."""
    asked = []

    def fits(prompt, reply):
        asked.append((prompt[-1]["content"], reply[0]["content"]))
        return reply[0]["content"] != "reply 0"

    rows = [rated(f"prompt {p}", f"reply {r}", kind=r) for p in range(60) for r in range(5)]
    report = load_pairs(write(tmp_path / "own.jsonl", rows), "kind", fits=fits, pairs_per_prompt=6).report
    assert len(asked) == len(set(asked)) == 300
    assert sum(report.pairs_kept.values()) == 60 * 6 and report.dropped == {"longer than the context": 60 * 4}


def test_the_limit_is_a_parameter_and_goes_for_all_that_is_read(tmp_path):
    write(tmp_path / "own.jsonl", many(200, 4, levels=50))
    given = {"settings": {"own": ["files:own.jsonl", "kind", "brief"]}, "data": str(tmp_path), "train_pairs": 10000}

    def read(**options):
        p = resolve(find_notebook("01_sequential_settings"), given | options, "test")
        assert {source.of.pairs_per_prompt for source in p.base_model.corpus} == {options.get("pairs_per_prompt")}
        sources = [p.source_of(p.all_settings()[0], objective) for objective in ("kind", "brief")]
        return [replace(source, fitting=None) for source in sources]  # no model is made here

    every, few = read(), read(pairs_per_prompt=2)
    assert [source.pairs_per_prompt for source in every + few] == [None, None, 2, 2]
    assert few[0].load(0).report.dropped["over pairs_per_prompt"] > 0
    assert few[0].load(0).report.pairs_kept["test"] < every[0].load(0).report.pairs_kept["test"]
    with pytest.raises(BadInput, match="pairs_per_prompt=0: input should be greater than or equal to 1"):
        read(pairs_per_prompt=0)


# --- splits ---------------------------------------------------------------------------------------


def test_the_share_of_held_out_prompts_is_a_parameter(tmp_path):
    """Half of the prompts or a tenth: none is in both splits, of any objective, and what is held out stays so."""
    write(tmp_path / "own.jsonl", many(300, 2))
    own = {"settings": {"own": ["files:own.jsonl", "kind", "brief"]}, "data": str(tmp_path), "train_pairs": 10000}
    own["test_pairs"] = 10000

    def read(**options):
        p = resolve(find_notebook("01_sequential_settings"), own | options, "test")
        assert {source.of.test_share for source in p.base_model.corpus} == {options.get("test_share", 0.1)}
        sources = [p.source_of(p.all_settings()[0], objective) for objective in ("kind", "brief")]
        loaded = [replace(source, fitting=None).load(0) for source in sources]  # no model is made here
        trained, tested = (set.union(*(prompts(getattr(x, split)) for x in loaded)) for split in ("train", "test"))
        assert not trained & tested
        return trained, tested, loaded

    (trained, tested, loaded), half = read(), read(test_share=0.5)
    assert len(tested) == pytest.approx(30, abs=15) and len(half[1]) == pytest.approx(150, abs=25)
    assert tested < half[1] and half[0] < trained and trained | tested == half[0] | half[1]
    assert loaded[0].report == read(test_share=0.1)[2][0].report, "the default is a tenth"
    for share in (0.0, 1.0, -0.1):
        with pytest.raises(BadInput, match=f"test_share={share}: input should be "):
            read(test_share=share)


def test_a_prompt_is_held_out_for_every_objective_or_for_none(tmp_path):
    """Whatever the order of rows, and although ties leave each objective other prompts."""
    rows = many(300, 2)
    one = write(tmp_path / "own.jsonl", rows)
    other = write(tmp_path / "shuffled.jsonl", sorted(rows, key=lambda row: row["response"]))
    loaded = [load_pairs(source, objective) for source in (one, other) for objective in ("kind", "brief")]
    trained, tested = (set.union(*(prompts(getattr(each, split)) for each in loaded)) for split in ("train", "test"))
    assert not trained & tested and tested
    assert prompts(loaded[0].test) != prompts(loaded[1].test)


def test_a_source_with_a_test_split_holds_its_prompts_out_for_every_objective(tmp_path):
    """The replies to `shared` tie in the test split by one objective, and are trained on by neither."""
    train = [rated(prompt, f"{n}", kind=n, brief=n) for prompt in ("shared", " own") for n in range(2)]
    test = [rated("shared ", "a", kind=1, brief=1), rated("shared ", "b", kind=0, brief=1), *TEST]
    source = folder(tmp_path, train, test)
    for objective, tested in (("kind", 2), ("brief", 1)):
        loaded = load_pairs(source, objective)
        assert triples(loaded.train) == [("own", "1", "0")] and len(loaded.test) == tested
        assert loaded.report.overlap == loaded.report.dropped["prompt in test split"] == 1


# --- agreement ------------------------------------------------------------------------------------


def agreement_of(source, *objectives):
    (found,) = agreements([load_pairs(source, objective) for objective in objectives])
    return found


def test_agreement_by_hand(tmp_path):
    rows = [
        *(rated("agree", "a", kind=2, brief=9), rated("agree", "b", kind=1, brief=8)),
        *(rated("oppose", "a", kind=2, brief=8), rated("oppose", "b", kind=1, brief=9)),
        *(rated("oppose too", "a", kind=0, brief=9), rated("oppose too", "b", kind=1, brief=8)),
        *(rated("kind alone", "a", kind=0, brief=1), rated("kind alone", "b", kind=1, brief=1)),
        *(rated("brief alone", "a", kind=None, brief=1), rated("brief alone", "b", kind=1, brief=2)),
        *(rated("neither", "a", kind=1, brief=1), rated("neither", "b", kind=1, brief=1)),
    ]
    found = agreement_of(folder(tmp_path, rows, TEST), "kind", "brief")
    assert found == Agreement("kind", "brief", agree=2, conflict=2, only_one=1, only_other=1) and found.both == 4
    shares = "4 pairs ordered by both (50.0% agree, 50.0% conflict)"
    assert str(found) == f"kind and brief: {shares}, 1 by kind only, 1 by brief only"
    assert str(Agreement("a", "b", 0, 0, 1000, 0)) == "a and b: 0 pairs ordered by both, 1,000 by a only, 0 by b only"


def test_copies_of_a_reply_count_once_and_not_at_all_if_rated_both_ways(tmp_path):
    rows = [
        *(rated("copies", "a", kind=2, brief=9), rated("copies", "a", kind=2, brief=9)),
        *(rated("copies", "b", kind=1, brief=8), rated("both ways", "a", kind=2, brief=9)),
        *(rated("both ways", "b", kind=1, brief=8), rated("both ways", "a", kind=0, brief=9)),
    ]
    found = agreement_of(folder(tmp_path, rows, TEST), "kind", "brief")
    assert found == Agreement("kind", "brief", agree=2, conflict=0, only_one=0, only_other=1)


def brute_force(rows):
    """(agree, conflict, by kind only, by brief only) of all combinations of rows of one prompt."""
    counts = Counter()
    for one, two in combinations(rows, 2):
        if one["prompt"] == two["prompt"]:
            kind, brief = (0 if None in (a := one[o], b := two[o]) else (a > b) - (a < b) for o in ("kind", "brief"))
            counts[("agree" if kind == brief else "conflict") if kind and brief else (bool(kind), bool(brief))] += 1
    return counts["agree"], counts["conflict"], counts[True, False], counts[False, True]


@pytest.mark.parametrize("seed", range(20))
def test_agreement_is_that_of_all_combinations(tmp_path, seed):
    rng = random.Random(seed)
    rows = many(rng.randint(40, 60), rng.randint(2, 6), seed, levels=rng.randint(2, 5))
    for row in rng.sample(rows, len(rows) // 8):
        row[rng.choice(["kind", "brief"])] = None
    found = agreement_of(folder(tmp_path, rows, TEST), "kind", "brief")
    assert (found.agree, found.conflict, found.only_one, found.only_other) == brute_force(rows + TEST)


def test_objectives_on_prompts_of_their_own_have_no_agreement():
    loaded = [load_pairs("world:conflict", o, max_train=40, max_test=10) for o in ("helpful", "harmless")]
    apart = not (everything(loaded[0]) & everything(loaded[1]))
    assert apart and all(found.both == 0 for found in agreements(loaded)) and agreements(loaded[:1]) == []


def pairs_command(source):
    return CliRunner().invoke(app, ["pairs", source])


def test_pairs_reports_every_objective_and_last_how_far_they_agree(tmp_path):
    source = write(tmp_path / "own.jsonl", [row | {"third": i % 7} for i, row in enumerate(many(80, 3))])
    *reports, last = pairs_command(source).stdout.strip().split("\n\n")
    assert [report.split("\n")[1].split()[1] for report in reports] == ["kind", "brief", "third"]
    assert [line.split(":")[0] for line in last.split("\n")] == ["kind and brief", "kind and third", "brief and third"]
    assert last.split("\n")[0] == str(agreement_of(source, "kind", "brief"))


def test_a_column_that_makes_no_pairs_is_an_error_after_the_other_reports(tmp_path):
    result = pairs_command(write(tmp_path / "own.jsonl", many(80, 3, year=2024)))
    assert result.exit_code == 2 and "kind and brief: " in result.stdout
    assert "no train pairs left for objective 'year'; expected some, dropped: 240 tied ratings" in result.stderr


# --- real data, where a reader has it -------------------------------------------------------------


def real(name):
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"no {path.name} in ../shared/data/{path.parent.name}")
    return path


def not_tied(report):
    """Pairs of rows with different ratings: those kept, and those whose texts are of no use."""
    useless = ("empty reply", "identical replies", "duplicate pair")
    return sum(report.pairs_kept.values()) + sum(report.dropped.get(reason, 0) for reason in useless)


def test_real_truthfulqa():
    """The counts of ../shared/data/README.md. They have the empty answers, which pairs and so agreement are without."""
    source = f"files:{real('truthfulqa/answers.jsonl.gz')}"
    assert objectives_of(source) == ["truthful", "informative"]
    loaded = [load_pairs(source, objective) for objective in ("truthful", "informative")]
    assert [each.report.rows_read for each in loaded] == [18244, 18244]
    assert [not_tied(each.report) for each in loaded] == [97846, 63498]
    assert not prompts(loaded[0].train) & prompts(loaded[1].test)
    (found,) = agreements(loaded)
    with_an_empty_answer = 473  # all of them opposed
    assert (found.both + with_an_empty_answer, found.conflict + with_an_empty_answer) == (41732, 40049)


def test_real_dialsummeval():
    source = f"files:{real('dialsummeval/summaries.jsonl.gz')}"
    counts = {"consistency": 7610, "relevance": 7543, "fluency": 6284, "coherence": 6387}
    assert objectives_of(source) == list(counts)
    loaded = [load_pairs(source, objective) for objective in counts]
    assert [not_tied(each.report) for each in loaded] == list(counts.values())
    assert len(agreements(loaded)) == 6
    limited = load_pairs(source, "consistency", pairs_per_prompt=20)
    assert sum(limited.report.pairs_kept.values()) <= 20 * 100
