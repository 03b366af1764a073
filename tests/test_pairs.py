"""Preference pairs: every schema, every reason to drop, splits, faults, and real data."""

import gzip
import hashlib
import json
import re
from pathlib import Path

import datasets
import huggingface_hub
import pytest

from preflab.data import schemas
from preflab.data.pairs import load_pairs, objectives_of
from preflab.data.report import FEW_TEST, FEW_TRAIN, Report
from preflab.errors import BadInput

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


# --- small files in the exact schemas -------------------------------------------------------------


def write(path, rows):
    """Rows to a file of the format that its suffix says; the source that names it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines.encode()))
    elif path.suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    else:
        path.write_text(json.dumps(rows) if path.suffix == ".json" else lines)
    return f"files:{path}"


def folder(path, train, test):
    """A folder with both splits, so that what is kept depends on no hash."""
    write(path / "train.jsonl", train)
    write(path / "test.jsonl", test)
    return f"files:{path}"


def turn(human, assistant=""):
    return f"\n\nHuman: {human}\n\nAssistant: {assistant}"


def hh(n, chosen="Boil it gently.", rejected="No idea."):
    return {"chosen": turn(f"egg {n}?", chosen), "rejected": turn(f"egg {n}?", rejected)}


def helpsteer(prompt, response, rating, **others):
    scores = {"helpfulness": rating, "correctness": 2, "coherence": 3, "complexity": 1}
    return {"prompt": prompt, "response": response, **scores, "verbosity": 4 - rating, **others}


def pku(n, better, safer, **others):
    row = {"prompt": f"lock {n}?", "response_0": f"zero {n}", "response_1": f"one {n}"}
    safe = {"is_response_0_safe": True, "is_response_1_safe": True}
    return row | safe | {"better_response_id": better, "safer_response_id": safer} | others


def ultrafeedback(n, *ratings, source="evol_instruct"):
    completions = []
    for k, rating in enumerate(ratings):
        annotations = {
            aspect: {"Rating": rating, "Rationale": "because"}
            for aspect in ("instruction_following", "honesty", "truthfulness", "helpfulness")
        }
        reply = {"model": f"m{k}", "response": f"reply {k}", "overall_score": 7.0}
        completions.append(reply | {"annotations": annotations})
    return {"source": source, "instruction": f"task {n}", "completions": completions}


def unieval(n, reply, **scores):
    row = {"source": f"so {n}\nyes", "context": f"fact {n}", "system_id": reply}
    return row | {"system_output": reply, "scores": scores}


def message(role, content):
    return {"role": role, "content": content}


def trl(n, chosen="good", rejected="bad", **others):
    return {"prompt": f"tree {n}?", "chosen": chosen, "rejected": rejected, **others}


def triples(rows):
    return [(row["prompt"][-1]["content"], row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in rows]


def prompts(rows):
    return {json.dumps(prompt) for prompt in rows["prompt"]}


# --- HH-RLHF --------------------------------------------------------------------------------------


def test_hh_parses_the_dialogue_and_keeps_the_label(tmp_path):
    talk = turn("hi", "hello\n\nthere") + "\n\nHuman: eggs?\n\nAssistant:"
    row = {"chosen": talk + " Boil.", "rejected": talk + " Fry."}
    loaded = load_pairs(folder(tmp_path, [row], [hh(9)]), "default")
    assert loaded.train[0] == {
        "prompt": [
            message("user", "hi"),
            message("assistant", "hello\n\nthere"),
            message("user", "eggs?"),
        ],
        "chosen": [message("assistant", "Boil.")],
        "rejected": [message("assistant", "Fry.")],
        "objective": "default",
    }
    assert loaded.report.schema == "hh-rlhf"


def test_hh_counts_every_reason_to_drop(tmp_path):
    odd = turn("a", "b") + "\n\nAssistant: c"
    train = [
        hh(1),
        hh(1),
        hh(2, "same", " same "),
        hh(3, chosen=""),
        hh(4, rejected="  "),
        {"chosen": turn("x?", "yes"), "rejected": turn("y?", "no")},
        {"chosen": "no dialogue", "rejected": "at all"},
        {"chosen": "before" + turn("x?", "yes"), "rejected": "before" + turn("x?", "no")},
        {"chosen": turn("x?", "yes\n\nHuman: so?"), "rejected": turn("x?", "no")},
        {"chosen": odd, "rejected": odd + "d"},
        {"chosen": turn("", "yes"), "rejected": turn("", "no")},
        hh(5, "Peel it.", "Break it."),
    ]
    test = [hh(5), hh(6, None, "No.") | {"chosen": None}, hh(7)]
    report = load_pairs(folder(tmp_path, train, test), "default").report
    assert report.dropped == {
        "duplicate pair": 1,
        "identical replies": 1,
        "empty reply": 2,
        "prompts differ": 1,
        "malformed dialogue": 4,
        "prompt does not end with a user turn": 1,
        "empty turn in prompt": 1,
        "prompt in test split": 1,
    }
    assert report.rows_read == 15
    assert report.pairs_kept == {"train": 1, "test": 2}
    assert sum(report.dropped.values()) + sum(report.pairs_kept.values()) == report.rows_read
    assert report.overlap == 1


def test_hh_sub_folders_are_objectives(tmp_path):
    for name in ("helpful-base", "harmless-base"):
        for split in ("train", "test"):
            rows = [hh(f"{name} {split} {n}") for n in range(3)]
            write(tmp_path / name / f"{split}.jsonl.gz", rows)
    (tmp_path / "notes").mkdir()
    source = f"files:{tmp_path}"
    assert objectives_of(source) == ["harmless-base", "helpful-base"]
    loaded = load_pairs(source, "helpful-base")
    assert set(loaded.train["objective"]) == {"helpful-base"}
    assert all("helpful-base" in prompt for prompt, _, _ in triples(loaded.train))
    with pytest.raises(BadInput, match=r"'helpful'; expected one of: harmless-base, helpful-base"):
        load_pairs(source, "helpful")


# --- rated schemas --------------------------------------------------------------------------------


def test_helpsteer_pairs_consecutive_rows_by_attribute(tmp_path):
    train = [
        helpsteer("p", "long", 4),
        helpsteer("p", "short", 1),
        helpsteer("tied", "a", 3),
        helpsteer("tied", "b", 3),
        helpsteer("lonely", "c", 3),
        helpsteer("q", "d", 0),
        helpsteer("q", "e", 2),
        helpsteer("unrated", "f", 1, helpfulness=None),
        helpsteer("unrated", "g", 2),
        helpsteer("trailing", "h", 2),
    ]
    source = folder(tmp_path, train, [helpsteer("t", "x", 3), helpsteer("t", "y", 2)])
    loaded = load_pairs(source, "helpfulness")
    assert triples(loaded.train) == [("p", "long", "short"), ("q", "e", "d")]
    assert triples(loaded.test) == [("t", "x", "y")]
    dropped = {"tied ratings": 1, "prompt with one response": 2, "unrated": 1}
    assert loaded.report.dropped == dropped
    assert loaded.report.balance["chosen_first"] == pytest.approx(2 / 3)
    # verbosity is 4 - helpfulness here: its pairs are the others reversed
    assert triples(load_pairs(source, "verbosity").train)[0] == ("p", "short", "long")
    assert objectives_of(source)[0] == "helpfulness" and len(objectives_of(source)) == 5


def test_helpsteer_reads_turns_between_markers(tmp_path):
    prompt = "hi\n<extra_id_1>Assistant\nhello\nyou\n<extra_id_1>User\nand eggs?"
    rows = [helpsteer(prompt, "a", 3), helpsteer(prompt, "b", 1)]
    test = [helpsteer("t", "x", 3), helpsteer("t", "y", 2)]
    loaded = load_pairs(folder(tmp_path, rows, test), "helpfulness")
    assert loaded.train[0]["prompt"] == [
        message("user", "hi"),
        message("assistant", "hello\nyou"),
        message("user", "and eggs?"),
    ]


def test_pku_has_two_labels(tmp_path):
    same = pku(4, 0, 0) | {"response_1": "zero 4"}
    unsafe = {"is_response_0_safe": False, "is_response_1_safe": False}
    source = folder(tmp_path, [pku(1, 0, 1), pku(2, 1, 1, **unsafe), same], [pku(3, 1, 0)])
    assert objectives_of(source) == ["better", "safer"]
    better, safer = (load_pairs(source, objective) for objective in ("better", "safer"))
    assert triples(better.train) == [
        ("lock 1?", "zero 1", "one 1"),
        ("lock 2?", "one 2", "zero 2"),
    ]
    assert triples(safer.train) == [("lock 1?", "one 1", "zero 1"), ("lock 2?", "one 2", "zero 2")]
    assert better.report.dropped == {"identical replies": 1}
    assert better.report.notes == {"pairs read where better != safer": 2}
    assert better.report.balance["chosen_first"] == pytest.approx(1 / 3)
    assert better.report.fingerprint != safer.report.fingerprint


def test_ultrafeedback_takes_all_combinations_that_differ(tmp_path):
    train = [
        ultrafeedback(1, "4", "5", "4", "1"),
        ultrafeedback(2, "3", "N/A", None),
        ultrafeedback(3, "5", "1", source="truthful_qa"),
        ultrafeedback(4),
    ]
    loaded = load_pairs(folder(tmp_path, train, [ultrafeedback(9, "2", "1")]), "honesty")
    assert [(good, bad) for _, good, bad in triples(loaded.train)] == [
        ("reply 1", "reply 0"),
        ("reply 0", "reply 3"),
        ("reply 1", "reply 2"),
        ("reply 1", "reply 3"),
        ("reply 2", "reply 3"),
    ]
    assert loaded.report.dropped == {"tied ratings": 1, "unrated": 3, "source is truthful_qa": 1}


def test_ratings_are_compared_as_numbers(tmp_path):
    train = [ultrafeedback(1, "10", "9"), ultrafeedback(2, "3", "3.0")]
    loaded = load_pairs(folder(tmp_path, train, [ultrafeedback(3, "2", "1")]), "helpfulness")
    assert triples(loaded.train) == [("task 1", "reply 0", "reply 1")]
    assert loaded.report.dropped == {"tied ratings": 1}


def test_unieval_groups_rows_of_one_dialogue(tmp_path):
    rows = [unieval(n, f"system {k}", naturalness=float(k), overall=5.0 - k) for k in range(3) for n in range(30)]
    source = write(tmp_path / "topical_chat.json", rows)
    assert objectives_of(source) == ["naturalness", "overall"]
    loaded = load_pairs(source, "overall", test_share=0.3)
    assert sum(loaded.report.pairs_kept.values()) == 30 * 3
    assert all(good < bad for _, good, bad in triples(loaded.train))
    assert re.fullmatch(r"fact \d+\n\nso \d+\nyes", loaded.test[0]["prompt"][0]["content"])


# --- TRL's own formats ----------------------------------------------------------------------------


def test_trl_formats_come_out_alike(tmp_path):
    def four(question):
        ask = message("user", question)
        good, bad = message("assistant", "y"), message("assistant", "n")
        implicit = {"chosen": [ask, good], "rejected": [ask, bad]}
        return [
            {"prompt": [ask], "chosen": [good], "rejected": [bad]},
            {"prompt": question, "chosen": "y", "rejected": "n"},
            {"prompt": question, **implicit},
            implicit,
        ]

    for k, (row, test) in enumerate(zip(four("q"), four("t"), strict=True)):
        loaded = load_pairs(folder(tmp_path / str(k), [row], [test]), "default")
        assert loaded.train[0] == {**four("q")[0], "objective": "default"}
        assert loaded.report.schema == "trl"


def test_trl_drops(tmp_path):
    ask, good, bad = message("user", "q"), message("assistant", "y"), message("assistant", "n")
    train = [
        {"prompt": [message("system", ""), ask], "chosen": [good], "rejected": [bad]},
        {"prompt": [ask], "chosen": [], "rejected": [bad]},
        {"prompt": [ask], "chosen": [ask, good], "rejected": [message("user", "r"), bad]},
        {"prompt": [ask], "chosen": [message("user", "r"), good], "rejected": [ask, bad]},
        {"prompt": [ask], "chosen": [good, message("user", "r"), good], "rejected": [good, bad]},
        {
            "prompt": [ask],
            "chosen": [good, message("user", "r"), good],
            "rejected": [good, message("user", "r"), bad],
        },
        {"prompt": [ask], "chosen": [ask], "rejected": [bad]},
        {"prompt": [ask, good], "chosen": [good], "rejected": [bad]},
    ]
    test = [{"prompt": [message("user", "t")], "chosen": [good], "rejected": [bad]}]
    loaded = load_pairs(folder(tmp_path, train, test), "default")
    assert loaded.train["prompt"] == [[ask]]  # an empty system turn is no turn
    assert loaded.report.dropped == {
        "empty reply": 1,
        "prompts differ": 3,
        "reply is not one assistant message": 2,
        "prompt does not end with a user turn": 1,
    }


def test_trl_objective_column_filters(tmp_path):
    rows = [trl(n, objective="kind" if n % 2 else "brief") for n in range(40)]
    source = write(tmp_path / "own.parquet", rows)
    assert objectives_of(source) == ["brief", "kind"]
    loaded = load_pairs(source, "kind", test_share=0.4)
    assert loaded.report.rows_read == 40
    assert sum(loaded.report.pairs_kept.values()) == 20
    assert loaded.report.dropped == {}


def test_rows_go_through_trl(tmp_path):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl.data_utils import apply_chat_template, extract_prompt, is_conversational

    source = write(tmp_path / "hh.jsonl", [hh(n) for n in range(40)])
    loaded = load_pairs(source, "default")
    row = loaded.train[0]
    assert is_conversational(row)
    # TRL's own split of an implicit prompt finds the prompt that we found
    whole = {side: row["prompt"] + row[side] for side in ("chosen", "rejected")}
    assert extract_prompt(whole) == {key: row[key] for key in ("prompt", "chosen", "rejected")}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel()))
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    rendered = apply_chat_template(row, tokenizer)
    assert rendered["prompt"] == f"<user>{row['prompt'][0]['content']}<assistant>"
    assert (rendered["chosen"], rendered["rejected"]) == ("Boil it gently.", "No idea.")


# --- several objectives in a reader's own files ----------------------------------------------------


def test_an_objective_column_makes_one_file_two_objectives(tmp_path):
    ask = message("user", "q")
    rows = [
        trl(1, objective="helpful"),
        trl(1, "careful", "careless", objective="harmless"),
        {"prompt": [ask], "chosen": [message("assistant", "y")], "rejected": [message("assistant", "n")]}
        | {"objective": "helpful"},
    ]
    source = folder(tmp_path, rows, [trl(8, objective="helpful"), trl(9, "one", "two", objective="harmless")])
    assert objectives_of(source) == ["harmless", "helpful"]
    helpful, harmless = (load_pairs(source, objective) for objective in ("helpful", "harmless"))
    assert triples(helpful.train) == [("tree 1?", "good", "bad"), ("q", "y", "n")]
    assert triples(harmless.train) == [("tree 1?", "careful", "careless")]
    assert triples(helpful.test) == [("tree 8?", "good", "bad")] and triples(harmless.test) == [
        ("tree 9?", "one", "two")
    ]
    assert set(helpful.train["objective"]) == {"helpful"} and set(harmless.test["objective"]) == {"harmless"}
    assert helpful.report.dropped == harmless.report.dropped == {}  # rows of the other objective are not lost


def test_the_example_of_the_docstring_is_read(tmp_path):
    examples = [line for line in schemas.__doc__.splitlines() if line.strip().startswith("{")]
    row = json.loads(examples[0])  # test_rated.py reads the other one
    source = folder(tmp_path, [row], [row | {"prompt": "And two eggs?"}])
    assert objectives_of(source) == ["helpful"]
    assert triples(load_pairs(source, "helpful").train) == [(row["prompt"], row["chosen"], row["rejected"])]


def test_an_objective_column_works_with_dialogues_as_text(tmp_path):
    rows = [hh(1) | {"objective": "helpful"}, hh(2) | {"objective": "harmless"}]
    source = folder(
        tmp_path, rows, [row | {"chosen": turn("new?", "a"), "rejected": turn("new?", "b")} for row in rows]
    )
    assert objectives_of(source) == ["harmless", "helpful"]
    loaded = load_pairs(source, "harmless")
    assert triples(loaded.train) == [("egg 2?", "Boil it gently.", "No idea.")] and len(loaded.test) == 1


def test_a_sub_folder_is_an_objective(tmp_path):
    for name in ("helpful", "harmless"):
        folder(tmp_path / name, [trl(1, f"{name} good")], [trl(2)])
    source = f"files:{tmp_path}"
    assert objectives_of(source) == ["harmless", "helpful"]
    loaded = load_pairs(source, "harmless")
    assert triples(loaded.train) == [("tree 1?", "harmless good", "bad")]
    assert set(loaded.train["objective"]) == {"harmless"} and loaded.report.objective == "harmless"


def test_an_objective_that_is_not_there_lists_those_that_are(tmp_path):
    rows = [trl(1, objective="brief"), trl(2, objective="kind")]
    source = write(tmp_path / "own.jsonl", rows)
    with pytest.raises(BadInput, match=r"own\.jsonl: objective is 'honest'; expected one of: brief, kind$"):
        load_pairs(source, "honest")
    many = write(tmp_path / "many.jsonl", [trl(n, objective=f"{n:03} {SECRET * 20}") for n in range(200)])
    with pytest.raises(BadInput, match=r"expected one of: 000 .*\.\.\. \(200 in all\)$") as caught:
        load_pairs(many, "honest")
    assert len(str(caught.value)) < 1000
    write(tmp_path / "pku" / "safety" / "a.jsonl", [pku(n, 0, 1) for n in range(9)])
    with pytest.raises(BadInput, match=r"pku/safety: objective is 'safety'; expected one of: better, safer$"):
        load_pairs(f"files:{tmp_path / 'pku'}", "safety")


@pytest.mark.parametrize(
    ("nameless", "expected"),
    [({}, "key 'objective' is missing"), ({"objective": None}, "'objective' is empty"), ({"objective": " "}, "empty")],
)
@pytest.mark.parametrize("position", [0, 1])
def test_a_row_without_the_objective_that_others_have_is_named(tmp_path, nameless, expected, position):
    rows = [trl(1, objective="brief")]
    rows.insert(position, trl(2, **nameless))
    with pytest.raises(BadInput, match=f"row {position + 1}: .*{expected}"):
        load_pairs(write(tmp_path / "own.jsonl", rows), "brief")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"prompt": "p", "response": "r", "truthful": "1", "seed": 1},
            "no ratings of the rated format; expected a column of numbers beside prompt and response",
        ),
        (unieval(1, "r"), "no ratings of the unieval format; expected some in its key 'scores'"),
    ],
)
def test_rows_without_ratings_have_no_objectives(tmp_path, row, expected):
    source = write(tmp_path / "unrated.jsonl", [row, row])
    for read in (objectives_of, lambda source: load_pairs(source, "helpfulness")):
        with pytest.raises(BadInput, match=expected) as caught:
            read(source)
        line = str(caught.value)
        assert "unrated.jsonl: row 1: " in line and "\n" not in line


# --- splits, subsets, fingerprints ----------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "json", "parquet"])
def test_one_file_of_any_format_is_split_by_prompt(tmp_path, suffix):
    rows = [trl(n // 2, f"good {n}") for n in range(400)]  # two pairs a prompt
    loaded = load_pairs(write(tmp_path / f"test.{suffix}", rows), "default", test_share=0.25)
    assert not prompts(loaded.train) & prompts(loaded.test)
    assert len(loaded.train) + len(loaded.test) == 400
    assert 60 < len(loaded.test) < 140
    reference = load_pairs(write(tmp_path / "again.jsonl", rows), "default", test_share=0.25)
    assert loaded.report.fingerprint == reference.report.fingerprint


def test_prompts_stay_on_their_side_whatever_else_changes(tmp_path):
    few = write(tmp_path / "few.jsonl", [trl(n) for n in range(50)])
    many = write(tmp_path / "many.jsonl", [trl(n, "fine") for n in reversed(range(200))])
    small = load_pairs(few, "default", seed=1)
    large = load_pairs(many, "default", seed=2, test_share=0.2)
    assert prompts(small.test) < prompts(large.test)


def test_official_splits_are_made_disjoint_in_favour_of_test(tmp_path):
    train = [trl(n) for n in range(10)] + [trl(3, "other")]
    test = [trl(n, "better") for n in (2, 3)]
    write(tmp_path / "train-00000.jsonl", train)
    write(tmp_path / "validation.jsonl", test)
    loaded = load_pairs(f"files:{tmp_path}", "default")
    assert not prompts(loaded.train) & prompts(loaded.test)
    assert len(loaded.test) == 2 and len(loaded.train) == 8
    assert loaded.report.overlap == 2
    assert loaded.report.dropped == {"prompt in test split": 3}


def test_subsets_follow_the_seed_and_nest(tmp_path):
    source = write(tmp_path / "a.jsonl", [trl(n) for n in range(300)])

    def load(**options):
        return load_pairs(source, "default", test_share=0.3, **options)

    once, again = load(max_train=20, max_test=10), load(max_train=20, max_test=10)
    assert once.train[:] == again.train[:]
    assert once.report == again.report
    assert once.report.pairs_kept == {"train": 20, "test": 10}
    assert sum(once.report.dropped.values()) + 30 == 300
    other = load(max_train=20, max_test=10, seed=1)
    assert prompts(other.train) != prompts(once.train)
    assert other.report.fingerprint != once.report.fingerprint
    larger = load(max_train=40, max_test=10)
    assert prompts(once.train) < prompts(larger.train)
    assert larger.test[:] == once.test[:]


def test_parts_share_no_prompt_and_are_the_same_for_every_seed(tmp_path):
    rows = [trl(n) for n in range(300)] + [trl(n, rejected="worse") for n in range(90)]
    source = write(tmp_path / "a.jsonl", rows)

    def load(*part, **options):
        return load_pairs(source, "default", test_share=0.3, part=part, **options)

    whole, parts = load(0.0, 1.0), [load(0.0, 0.3), load(0.3, 0.4), load(0.4, 1.0)]
    assert set().union(*(prompts(part.train) for part in parts)) == prompts(whole.train)
    assert sum(len(part.train) for part in parts) == len(whole.train)  # none twice
    assert [len(part.train) / len(whole.train) for part in parts] == pytest.approx([0.3, 0.1, 0.6], abs=0.08)
    assert all(part.test[:] == whole.test[:] for part in parts)
    assert parts[0].report.dropped["in another part of the prompts"] == len(whole.train) - len(parts[0].train)
    assert all(prompts(load(0.0, 0.3, seed=seed, max_train=30).train) < prompts(parts[0].train) for seed in (0, 1))


def test_fingerprint_notices_a_swapped_label(tmp_path):
    rows, test = [trl(n) for n in range(5)], [trl(9)]
    right = load_pairs(folder(tmp_path / "right", rows, test), "default").report
    rows[2]["chosen"], rows[2]["rejected"] = rows[2]["rejected"], rows[2]["chosen"]
    wrong = load_pairs(folder(tmp_path / "wrong", rows, test), "default").report
    assert right.fingerprint != wrong.fingerprint


def test_fingerprint_is_what_it_says(tmp_path):
    """A changed recipe would make caches and recorded runs incomparable."""
    report = load_pairs(folder(tmp_path, [trl(1)], [trl(2)]), "default").report
    lines = (
        '["train", "default", [["user", "tree 1?"]], "good", "bad"]\n'
        '["test", "default", [["user", "tree 2?"]], "good", "bad"]\n'
    )
    assert report.fingerprint == hashlib.sha256(lines.encode()).hexdigest()


def test_report_measures_words_and_prints(tmp_path):
    train = [trl(1, "one two three", "one"), trl(2, "one", "one two"), trl(3, "a b", "c d")]
    report = load_pairs(folder(tmp_path, train, [trl(4, "a b c", "d")]), "default").report
    assert report.lengths["prompt"] == {"median": 2.0, "p95": 2.0}
    assert report.lengths["chosen"]["median"] == 2.5
    assert report.balance == {"chosen_longer": 0.5, "chosen_first": None}
    assert json.loads(json.dumps(report.as_dict())) == report.as_dict()
    text = str(report)
    assert "train pairs     3\n" in text and "chosen longer   50.0%" in text
    assert len({re.match(r".{15} (?=\S)", line) is None for line in text.splitlines()}) == 1


def few(train, test):
    """The warning of a report on so many pairs."""
    words = {side: {"median": 1.0, "p95": 1.0} for side in ("prompt", "chosen", "rejected")}
    balance = {"chosen_longer": 0.5, "chosen_first": None}
    kept = {"train": train, "test": test}
    report = Report("files:a", "default", "trl", None, train + test, kept, {}, words, balance, 0, "0")
    lines = [line for line in str(report).splitlines() if line.startswith("warning")]
    assert lines == ([f"{'warning':<16}{report.few}"] if report.few else [])
    return report.few


def test_a_report_warns_of_too_few_pairs():
    assert few(FEW_TRAIN, FEW_TEST) == ""
    assert few(199, 50) == "only 199 train pairs, expected at least 200"
    assert few(200, 49) == "only 49 test pairs, expected at least 50: a share of 50 pairs is known to about ±14 points"
    assert few(1, 2) == f"{few(1, 50)}; {few(200, 2)}"


@pytest.mark.parametrize(("train", "warns"), [(250, False), (30, True)])
def test_the_warning_is_for_worlds_and_files(tmp_path, train, warns):
    source = folder(tmp_path, [trl(n) for n in range(train)], [trl(-n) for n in range(1, 61)])
    reports = [load_pairs(source, "default").report]
    reports += [load_pairs("world:conflict", "helpful", max_train=train, max_test=60).report]
    for report in reports:
        assert bool(report.few) == warns == ("warning  " in str(report))
        assert "few" not in report.as_dict()  # what is recorded of a run stays comparable


# --- the hub, and worlds --------------------------------------------------------------------------

COMMIT = "0123456789abcdef" * 2 + "01234567"


def serve(monkeypatch, splits, cache=None):
    """Let datasets.load_dataset return these splits, from files in `cache`; the calls it got."""
    calls = []

    def load_dataset(repo, **options):
        calls.append((repo, options))
        loaded = {name: datasets.Dataset.from_list(rows) for name, rows in splits.items()}
        if cache:  # as the real cache has it: .../VERSION/COMMIT/FILE.arrow
            for name, rows in loaded.items():
                rows.save_to_disk(cache)
                (cache / "data-00000-of-00001.arrow").rename(cache / f"{name}.arrow")
                loaded[name] = datasets.Dataset.from_file(str(cache / f"{name}.arrow"))
        return datasets.DatasetDict(loaded)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


def unreachable(*args, **options):
    raise ConnectionError("no route to host\nsecond line")


def test_hub_hh(tmp_path, monkeypatch):
    splits = {"train": [hh(n) for n in range(5)], "test": [hh(9)]}
    calls = serve(monkeypatch, splits, tmp_path / COMMIT)
    assert "harmless-base" in objectives_of("hub:Anthropic/hh-rlhf") and not calls
    loaded = load_pairs("hub:Anthropic/hh-rlhf", "helpful-base", revision="main")
    options = {"data_dir": "helpful-base", "revision": "main"}
    assert calls == [("Anthropic/hh-rlhf", options)]
    assert loaded.report.revision == COMMIT
    assert loaded.report.pairs_kept == {"train": 5, "test": 1}
    with pytest.raises(BadInput, match="helpful-online"):
        load_pairs("hub:Anthropic/hh-rlhf", "honest-base")
    assert len(calls) == 1  # refused before anything is downloaded


@pytest.mark.parametrize(
    ("repo", "objective", "splits", "kept"),
    [
        (
            "nvidia/HelpSteer2",
            "correctness",
            {
                "train": [helpsteer("p", "a", 3), helpsteer("p", "b", 3, correctness=4)],
                "validation": [helpsteer("q", "a", 3), helpsteer("q", "b", 3, correctness=0)],
            },
            {"train": 1, "test": 1},
        ),
        (
            "PKU-Alignment/PKU-SafeRLHF",
            "safer",
            {"train": [pku(1, 0, 1), pku(2, 0, 0)], "test": [pku(3, 0, 0)]},
            {"train": 2, "test": 1},
        ),
        (
            "openbmb/UltraFeedback",
            "truthfulness",
            {"train": [ultrafeedback(n, "4", "N/A", "2", "10") for n in range(30)]},
            {"train": 75, "test": 15},
        ),
        (
            "someone/own",
            "default",
            {"train": [trl(n) for n in range(4)], "test": [trl(5)]},
            {"train": 4, "test": 1},
        ),
    ],
)
def test_hub_schemas(monkeypatch, repo, objective, splits, kept):
    calls = serve(monkeypatch, splits)
    monkeypatch.setattr(huggingface_hub, "dataset_info", unreachable)
    loaded = load_pairs(f"hub:{repo}", objective)
    assert calls[-1] == (repo, {"data_dir": None, "revision": None})
    assert objective in objectives_of(f"hub:{repo}")
    assert loaded.report.pairs_kept == kept
    assert loaded.report.revision is None  # unknown, so not invented
    assert not prompts(loaded.train) & prompts(loaded.test)


def test_hub_says_which_commit_where_the_files_do_not(monkeypatch):
    serve(monkeypatch, {"train": [trl(1)], "test": [trl(2)]})
    info = huggingface_hub.hf_api.DatasetInfo(id="a/b", sha=COMMIT)
    monkeypatch.setattr(huggingface_hub, "dataset_info", lambda *args, **options: info)
    assert load_pairs("hub:a/b", "default").report.revision == COMMIT


def test_hub_cache_of_another_revision_is_refused(tmp_path, monkeypatch):
    serve(monkeypatch, {"train": [trl(1)], "test": [trl(2)]}, tmp_path / COMMIT)
    with pytest.raises(BadInput, match=f"the cache holds {COMMIT}; expected revision ffff"):
        load_pairs("hub:a/b", "default", revision="f" * 40)
    assert load_pairs("hub:a/b", "default", revision=COMMIT).report.revision == COMMIT


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConnectionError("no route\nto host"), "hub cannot be reached"),
        (ValueError("Couldn't find cache for a/b\nfor config"), "hub cannot be reached"),
        (datasets.exceptions.DatasetNotFoundError("'a/b' is a gated dataset on the Hub."), "gated"),
        (datasets.exceptions.DatasetNotFoundError("'a/b' doesn't exist on the Hub"), "not found"),
        (RuntimeError("Dataset scripts are no longer supported"), "RuntimeError"),
        (datasets.exceptions.DatasetGenerationError("secret row"), "DatasetGenerationError"),
    ],
)
def test_hub_failures_are_one_line(monkeypatch, error, expected):
    def load_dataset(*args, **options):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(BadInput) as caught:
        load_pairs("hub:a/b", "default", revision="v1")
    line = str(caught.value)
    assert line.startswith("hub:a/b at revision v1: ") and expected in line
    assert "\n" not in line and "secret" not in line


def test_world_has_the_same_report():
    objectives = objectives_of("world:conflict")
    loaded = load_pairs("world:conflict", objectives[0], max_train=40, max_test=15)
    assert loaded.report.pairs_kept == {"train": 40, "test": 15}
    assert loaded.report.dropped == {} and loaded.report.overlap == 0
    assert loaded.report.rows_read == 55
    assert set(loaded.train["objective"]) == {objectives[0]}
    assert loaded.train.column_names == ["prompt", "chosen", "rejected", "objective"]
    with pytest.raises(BadInput, match="nothing"):
        load_pairs("world:conflict", "nothing")


# --- bad input: one line that names what is wrong -------------------------------------------------

GOOD = json.dumps(trl(1))
SECRET = "unspeakable"


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", b"x", r"a\.csv: unsupported extension; expected one of \.jsonl,"),
        ("a.jsonl", b"", r"a\.jsonl: is empty"),
        (
            "a.jsonl",
            f'{GOOD}\n{{"prompt": "{SECRET}\n'.encode(),
            r"a\.jsonl: line 2, column 24: Invalid control character; ",
        ),
        ("a.json", b'[\n{"prompt": 1},\n{]', r"a\.json: line 3, column 2: "),
        ("a.json", b'{"prompt": 1}', r"a\.json: holds a dict; expected a list"),
        ("a.jsonl", GOOD.encode() + b"\n[1]", r"a\.jsonl: row 2 is a list; expected an object"),
        ("a.jsonl", '{"prompt": "é'.encode("latin-1"), r"a\.jsonl: not UTF-8; expected UTF-8 text"),
        ("a.jsonl.gz", gzip.compress(GOOD.encode())[:-12], r"a\.jsonl\.gz: truncated or corrupt"),
        ("a.jsonl.gz", b"plain", r"a\.jsonl\.gz: truncated or corrupt; expected a gzip"),
        ("a.parquet", b"PAR1 no", r"a\.parquet: truncated or corrupt; expected a Parquet"),
        ("a.jsonl", b'{"text": "x"}', r"columns text; expected those of .*trl: prompt, chosen, rejected; "),
        ("a.jsonl", [trl(1), {"prompt": "q", "chosen": "y"}], r"row 2: key 'rejected' is missing"),
        ("a.jsonl", [trl(1), trl(2, chosen=3)], r"row 2: key 'chosen' is of type int; expected"),
        ("a.jsonl", [trl(1, chosen=[message("bot", SECRET)])], r"'chosen.role' is 'bot'; expected"),
        ("a.jsonl", b'{"chosen": "\\ud800", "rejected": "x"}', r"row 1: key 'chosen' holds half"),
    ],
)
def test_bad_files(tmp_path, name, content, expected):
    path = tmp_path / name
    path.write_bytes(content) if isinstance(content, bytes) else write(path, content)
    with pytest.raises(BadInput, match=expected) as caught:
        load_pairs(f"files:{path}", "default")
    line = str(caught.value)
    assert name in line and "expected" in line and "\n" not in line and SECRET not in line


TRL = "expected those of the trl format: prompt, chosen, rejected (other formats: unieval, ultrafeedback, "


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ("prompt chosen", f"column 'rejected' is missing; {TRL}pku-saferlhf, helpsteer2, hh-rlhf, rated)"),
        ("id prompt rejected", f"column 'chosen' is missing; {TRL}"),
        ("chosen", "column 'rejected' is missing; expected those of the hh-rlhf format: chosen, rejected ("),
        ("prompt", "column 'response' is missing; expected those of the rated format: prompt, response ("),
        ("prompt response_0 n", "column 'response_1' is missing; expected those of the pku-saferlhf format: prompt, "),
        ("source context", "columns 'system_output', 'scores' are missing; expected those of the unieval format: "),
        (
            "question best worst",
            "columns question, best, worst; expected those of a format (unieval: source, context, ",
        ),
        ("", "columns none; expected those of a format ("),
    ],
)
def test_columns_that_lack_one_are_told_which(tmp_path, columns, expected):
    path = tmp_path / "my.jsonl"
    write(path, [dict.fromkeys(columns.split(), SECRET)])
    for read in (objectives_of, lambda source: load_pairs(source, "default")):
        with pytest.raises(BadInput) as caught:
            read(f"files:{path}")
        line = str(caught.value).replace(str(tmp_path), "")
        assert line.startswith(f"/my.jsonl: {expected}")
        assert len(line) < 400 and "\n" not in line and SECRET not in line


def test_long_and_many_columns_are_cut_short(tmp_path):
    path = tmp_path / "my.jsonl"
    write(path, [{f"{n} {SECRET * 30}": "x" for n in range(100)}])
    with pytest.raises(BadInput, match=r"columns 0 .*\(100 in all\); expected those of a format") as caught:
        load_pairs(f"files:{path}", "default")
    assert len(str(caught.value)) < 700


def test_a_first_row_that_lacks_a_column_is_named(tmp_path):
    path = write(tmp_path / "my.jsonl", [{"prompt": "q", "chosen": "y"}, trl(1)])
    with pytest.raises(BadInput, match=r"my\.jsonl: row 1: key 'rejected' is missing; expected a str"):
        load_pairs(path, "default")


@pytest.mark.parametrize("rating", [5, -1, "high", float("nan"), True, [1]])
def test_bad_ratings(tmp_path, rating):
    rows = [helpsteer("p", "a", 1), helpsteer("p", "b", 1, helpfulness=rating)]
    expected = r"a\.jsonl: row 2: key 'helpfulness' is .*; expected a number from 0 to 4"
    with pytest.raises(BadInput, match=expected):
        load_pairs(write(tmp_path / "a.jsonl", rows), "helpfulness")


def test_bad_keys_inside_rated_rows(tmp_path):
    gap = helpsteer("p", "b", 1)
    del gap["helpfulness"]
    with pytest.raises(BadInput, match="row 2: key 'helpfulness' is missing"):
        load_pairs(write(tmp_path / "h.jsonl", [helpsteer("p", "a", 1), gap]), "helpfulness")
    with pytest.raises(BadInput, match="row 1: key 'safer_response_id' is 2; expected 0 or 1"):
        load_pairs(write(tmp_path / "p.jsonl", [pku(1, 0, 2)]), "better")
    with pytest.raises(BadInput, match="row 1, completion 1, honesty: key 'Rating' is '11'"):
        load_pairs(write(tmp_path / "u.jsonl", [ultrafeedback(1, "3", "11")]), "honesty")
    with pytest.raises(BadInput, match="'politeness'; expected one of: helpfulness, correctness"):
        load_pairs(write(tmp_path / "h.jsonl", [helpsteer("p", "a", 1)]), "politeness")


@pytest.mark.parametrize("source", ["", "worlds", "web:x", "files:", "path/to/file.jsonl", 3])
def test_bad_source(source):
    with pytest.raises(BadInput, match="expected world:NAME, hub:REPO or files:PATH"):
        load_pairs(source, "default")


def test_bad_paths_and_numbers(tmp_path):
    with pytest.raises(BadInput, match="no such path"):
        load_pairs(f"files:{tmp_path / 'nowhere'}", "default")
    with pytest.raises(BadInput, match="no data in this folder"):
        load_pairs(f"files:{tmp_path}", "default")
    source = folder(tmp_path, [trl(1)], [trl(2)])
    with pytest.raises(BadInput, match="test_share is 1; expected"):
        load_pairs(source, "default", test_share=1)
    with pytest.raises(BadInput, match="max_test is 0; expected"):
        load_pairs(source, "default", max_test=0)
    write(tmp_path / "train2.jsonl", [hh(1)])
    with pytest.raises(BadInput, match="schemas hh-rlhf, trl; expected one schema"):
        load_pairs(source, "default")


def test_no_pairs_left_says_where_they_went(tmp_path):
    source = folder(tmp_path, [trl(1), trl(2, "bad"), trl(3, "")], [trl(1, "best")])
    lost = "dropped: 1 empty reply, 1 identical replies, 1 prompt in test split"
    with pytest.raises(BadInput, match=f"no train pairs left for objective 'default'; .*{lost}"):
        load_pairs(source, "default")


# --- real data, where a reader has it -------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "rows", "differ", "identical", "longer"),
    [("helpful-base", 2354, 9, 2, 0.596), ("harmless-base", 2312, 5, None, 0.442)],
)
def test_real_hh(name, rows, differ, identical, longer):
    path = SHARED / "hh-rlhf" / name / "test.jsonl.gz"
    if not path.exists():
        pytest.skip(f"no {path.name} of {name} in ../shared/data/hh-rlhf")
    report = load_pairs(f"files:{path}", "default").report
    assert report.rows_read == rows
    assert report.dropped["prompts differ"] == differ
    assert report.dropped.get("identical replies") == identical
    assert sum(report.pairs_kept.values()) + sum(report.dropped.values()) == rows
    # datasets.md counts characters of the raw pairs, the report words of those kept
    assert report.balance["chosen_longer"] == pytest.approx(longer, abs=0.02)


def test_real_unieval():
    path = SHARED / "unieval" / "topical_chat.json"
    if not path.exists():
        pytest.skip("no topical_chat.json in ../shared/data/unieval")
    source = f"files:{path}"
    assert "overall" in objectives_of(source)
    for objective in objectives_of(source):
        loaded = load_pairs(source, objective)
        report = loaded.report
        assert report.rows_read == 360
        assert len(prompts(loaded.train) | prompts(loaded.test)) <= 60
        assert sum(report.pairs_kept.values()) + sum(report.dropped.values()) == 900
