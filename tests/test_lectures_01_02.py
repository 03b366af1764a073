"""What notebooks 01 and 02 leave to the library, the cells that they show in full, and their exercises."""

import ast
import re
from dataclasses import replace
from types import SimpleNamespace

import jupytext
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from preflab import measured
from preflab.alignment import nll_gradient, parameters_of, token_alignment
from preflab.claims import INCONCLUSIVE
from preflab.claims.sequential import depends_on_order
from preflab.data.worlds import get_world
from preflab.errors import BadInput
from preflab.experiments.g_dynamics import logged
from preflab.experiments.sequential import Sequence, accuracies, mean_utilities, numbered, said
from preflab.experiments.two_stages import Setting
from preflab.figures import dynamics as plots_02
from preflab.figures import sequential as plots_01
from preflab.likelihood import collate, collate_responses
from preflab.margins import STAGES, TRANSITIONS, Outcome, independent_score, quartile_changes, quartile_curves
from preflab.measured import COMPONENTS, PARTS, Measured
from preflab.methods.dpo import DPO
from preflab.paths import project_root
from preflab.rewards import well_formed
from preflab.running.reading import defaults, resolve
from preflab.running.run import Run
from preflab.stages.answers import Answers
from preflab.stages.evaluation import Evaluated
from preflab.statistics import Interval

SOURCES = {n: next((project_root() / "notebooks" / "src").glob(f"{n}_*.py")) for n in ("01", "02")}
CPU = {"hardware": {"device": "cpu", "dtype": "float64", "workers": 1}}
SMALL = CPU | {"base": {"hidden_size": 16, "layers": 1, "heads": 2, "sft": {"steps": 10, "batch_size": 16}}}


def parameters(number, **given):
    return resolve(SOURCES[number], given, "test")


def cells(number):
    return jupytext.read(SOURCES[number]).cells


def shown_cells(number, first, last):
    """The code of the notebook's cells from the one that begins with `first` to the one that begins with `last`."""
    code = [cell.source for cell in cells(number) if cell.cell_type == "code"]
    starts = [next(i for i, c in enumerate(code) if c.startswith(words)) for words in (first, last)]
    return "\n\n".join(code[starts[0] : starts[1] + 1])


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


# --- notebook 01: settings and sequences ----------------------------------------------------------


def answered(text):
    prompt = [{"role": "user", "content": "how do i fix the old lamp at home ?"}]
    return [{"objective": o, "prompt": prompt, "response": text} for o in ("harmless", "helpful")]


@pytest.fixture
def sequence():
    """Two seeds and four held-out pairs of `helpful`, then of `harmless`; the base says nothing right."""
    helpful = np.array([[[-1, -1, 1, 1]] * 2, [[1, 1, 1, -1], [1, 1, 1, 1]], [[1, -1, -1, -1]] * 2], dtype=float)
    harmless = np.ones((3, 2, 3))
    texts = ("use the rope .", "use the wire . then test it .", "sorry i can not help .")
    results = [[Evaluated({}, answered(text))] * 2 for text in texts]
    policy = {"helpful": helpful, "harmless": harmless}
    dpo = {"helpful": 0 * helpful + [[[0]], [[1]], [[0]]], "harmless": 0 * harmless}
    prompts = {"helpful": np.array([0, 1, 2, 2]), "harmless": np.arange(3)}
    setting = Setting.of("conflict", ["world:conflict", "harmless", "helpful"])
    return Sequence(setting, ("helpful", "harmless"), policy, dpo, prompts, results)


def test_the_relation_of_a_setting():
    world = Setting.of("s", ["world:conflict", "helpful", "harmless"])
    assert world.relation == get_world("conflict").compatibility()
    assert Setting.of("s", ["world:conflict", "helpful", "helpful"]).relation == {"correlation": 1, "disagreement": 0}
    assert Setting.of("s", ["files:.", "a", "b"]).relation == {}
    assert world.described() == world.relation | {
        "A": "helpful", "strength A": 0.85, "B": "harmless", "strength B": 0.85
    }  # fmt: skip


def test_a_sequence_knows_its_order_pairs_and_what_the_claims_ask(sequence):
    assert sequence.order == "B → A"
    assert sequence.held_out == {"held-out pairs": 4, "held-out prompts": 3}
    assert sequence.cell.name == "conflict: helpful → harmless"
    assert sequence.cell.compatibility == get_world("conflict").compatibility()["correlation"]
    assert sequence.cell.change.tolist() == sequence.change.tolist()
    assert sequence.outcome.gain.value == pytest.approx(0.75) and sequence.outcome.change.value == pytest.approx(-1.25)


def test_an_outcome_asks_whether_stage_1_ordered_its_pairs_and_not_stage_2(sequence):
    """Margins of many pairs fall clearly; DPO margins are above 0 after Stage 1 alone, and after Stage 2 alone."""
    helpful = np.array([[[0.0] * 40] * 2, [[1.0] * 40] * 2, [[0.5] * 40] * 2])
    many = {"policy_margins": {"helpful": helpful}, "prompts": {"helpful": np.arange(40)}}
    for right, verdict in ((1, "degraded"), (2, "not learned")):
        dpo = {"helpful": np.array([np.full((2, 40), float(stage == right)) for stage in range(3)])}
        assert replace(sequence, **many, dpo_margins=dpo).outcome.verdict == verdict


def test_a_setting_of_two_sources_takes_each_objective_from_its_own():
    two = Setting.of("s", ["files:pku", "safer", "files:hh", "helpful-base"])
    assert (two.source_of("safer"), two.source_of("helpful-base")) == ("files:pku", "files:hh")
    assert two.world is None and two.relation == {} and two.orders == [two.objectives, two.objectives[::-1]]
    p = parameters("01", settings={"s": ["world:conflict", "helpful", "world:safety", "better"]})
    (setting,) = p.all_settings()
    assert [p.source_of(setting, o).source for o in setting.objectives] == ["world:conflict", "world:safety"]
    assert p.sources() == [("world:conflict", "helpful"), ("world:safety", "better")]
    for row, words in (
        (["world:conflict", "helpful", "safety", "better"], "settings.s='safety': expected world:NAME"),
        (["files:a", "helpful", "files:b", "helpful"], "two sources, expected objectives of different"),
    ):
        with pytest.raises(BadInput, match=words):
            parameters("01", settings={"s": row})


def test_prompts_are_numbered_by_their_content():
    one, other = [{"role": "user", "content": "a"}], [{"role": "user", "content": "b"}]
    assert numbered([one, other, one]).tolist() == [0, 1, 0]


def test_an_outcome_that_was_not_learned_relates_to_nothing(sequence):
    told = sequence.told()
    assert (told["verdict"], told["relative"], told["held-out pairs"]) == ("not learned", None, 4)
    assert told["gain"] == sequence.outcome.gain


def test_accuracies_are_told_by_stage_and_never_as_a_claim(sequence):
    first, second = accuracies(sequence)
    assert list(first) == [
        "sequence", "measured on", "relative, Stage 1", "relative, Stage 2", "policy, base", "policy, Stage 1",
        "policy, Stage 2", "held-out pairs",
    ]  # fmt: skip
    assert [first[f"policy, {stage}"] for stage in STAGES] == [0.5, 0.875, 0.25]
    assert (first["relative, Stage 1"], first["relative, Stage 2"], first["held-out pairs"]) == (1, 0, 4)
    assert (second["measured on"], second["policy, base"], second["held-out pairs"]) == ("harmless", 1, 3)


def test_the_oracle_judges_what_each_stage_says(sequence):
    helpful, harmless = mean_utilities(sequence)
    assert [helpful[stage] for stage in STAGES] == [-1, 2, -2]
    assert (helpful["utility of"], harmless["utility of"], helpful["held-out prompts"]) == ("helpful", "harmless", 1)
    unjudged = replace(sequence, setting=Setting.of("s", ["files:.", "helpful", "harmless"]))
    assert mean_utilities(unjudged) == []


def test_what_is_said_is_told_by_prompt_and_stage(sequence):
    ((prompt, answers),) = said(sequence, 2).items()
    assert prompt == "how do i fix the old lamp at home ?"
    assert answers == dict(zip(STAGES, [r[0].samples[0]["response"] for r in sequence.results], strict=True))


def test_too_few_pairs_are_warned_of_and_counted():
    settings = {"conflict": ["world:conflict", "helpful", "harmless"]}
    few = parameters("01", settings=settings, train_pairs=32, test_pairs=16)
    assert few.counts()["conflict, harmless"] == {"training pairs": 32, "held-out pairs": 16}
    assert [line.partition(": only")[0] for line in few.few()] == ["conflict, helpful", "conflict, harmless"]
    assert parameters("01", settings=settings, train_pairs=208, test_pairs=64).few() == []
    assert len(parameters("01", settings=settings, train_pairs=32, test_pairs=16, seeds=[5]).few()) == 2
    assert "only 16 test pairs" in parameters("02", train_pairs=208, test_pairs=16, measurement={"finals": 8}).few()[0]


def test_quartiles_by_other_seeds_need_other_seeds(rng):
    stage1, change = rng.normal(size=(2, 40)), rng.normal(size=(2, 40))
    found = quartile_curves(stage1, change)
    assert found["own"] == quartile_changes(change, stage1)
    assert found["independent"] == quartile_changes(change, independent_score(stage1))
    assert list(quartile_curves(stage1[:1], change[:1])) == ["own"]


def test_a_setting_with_one_objective_has_one_order_and_says_nothing_of_order(sequence):
    claim = depends_on_order([sequence.cell])
    assert np.isnan(claim.value) and claim.verdict == INCONCLUSIVE


# --- notebook 02: what is read off several runs ---------------------------------------------------

STEPS, N, PLACES = 3, 4, ("embedding", "layer 0", "head")


def a_run(scale):
    """Three steps of PPO with two later inner epochs; G of part i at step t is scale * (10 t + i)."""
    g = scale * (10 * np.arange(STEPS)[:, None] + np.arange(len(PARTS)))  # (S, PARTS)
    inner = np.stack([g[:, :3] + 100.0, g[:, :3] + 200.0], axis=1)
    inner[-1] = np.nan
    places = [{place: scale * (t + i) for i, place in enumerate(PLACES)} for t in range(STEPS)]
    layers = [{part: place for part in PARTS[:3]} for place in places]
    steps = np.arange(STEPS)
    nan_last = np.array([1.0, -1.0, np.nan])
    return Measured(
        steps=steps, contributions=np.broadcast_to(g[:, None, :, None], (STEPS, 2, len(PARTS), N)), layers=layers,
        cosine=np.full(STEPS, 0.5), ceilings=np.tile([0.9, 0.8], (STEPS, 1)),
        weights=[np.array([t, t + 2.0]) for t in steps], total_weight=np.ones((STEPS, len(PARTS))), margins=None,
        nll=np.zeros(STEPS), predicted=scale * nan_last, changed=2 * scale * nan_last, step_cosine=nan_last,
        tokens=[], held_out=np.zeros((STEPS, 2, N)), inner=inner,
    )  # fmt: skip


RUNS = [a_run(1), a_run(2)]


def test_progress_is_the_share_of_all_updates():
    assert replace(RUNS[0], steps=np.array([0, 3, 12])).progress.tolist() == [0, 0.25, 1]


def test_components_are_stacked_by_run():
    g = measured.g_by_component(RUNS)
    assert list(g) == list(COMPONENTS)
    assert g["negative"].tolist() == [[2, 12, 22], [4, 24, 44]]
    assert {part: curves.tolist() for part, curves in measured.noise_by_component(RUNS).items()} == dict.fromkeys(
        COMPONENTS, [[0, 0, 0]] * 2
    )


def test_epochs_begin_with_the_measurement_itself_and_end_before_the_last_step():
    epochs = measured.g_by_epoch(RUNS)
    assert list(epochs) == list(measured.SIGNS)
    assert epochs["positive"].tolist() == [
        [[1, 11], [2, 22]],
        [[101, 111], [102, 122]],
        [[201, 211], [202, 222]],
    ]  # epochs, runs, steps


def test_places_and_weights_are_told_over_all_runs():
    assert measured.g_by_layer(RUNS)["whole"].tolist() == [[0, 1.5, 3], [1.5, 3, 4.5], [3, 4.5, 6]]
    at = measured.weights_at(RUNS)
    assert {moment: w.tolist() for moment, w in at.items()} == {
        "at the start": [0, 2, 0, 2], "half-way": [1, 3, 1, 3], "at the end": [2, 4, 2, 4]
    }  # fmt: skip
    assert measured.mean_weights(RUNS).tolist() == [[1, 2, 3]] * 2


def test_adams_steps_stand_beside_what_g_foretells():
    found = measured.adams_steps(RUNS)
    assert found["correlation of predicted and real"] == pytest.approx(1)
    assert found["sign of Adam's step as G foretells"] == 0.5  # G > 0 and the NLL falls: so at the second step
    assert found["cosine of Adam's step and descent"] == 0
    assert (found["cosine of v and the gradient"], found["ceiling: halves of D'"]) == (0.5, pytest.approx(0.9))


def test_pulls_are_shares_of_the_largest_with_labels_in_turn():
    rows = [{"prompt": "p", "tokens": ["a", "b"], "pull": [1.0, -4.0]}, {"prompt": "p", "tokens": ["c"], "pull": [2.0]}]
    shown = measured.pulls(rows * 2, ("chosen", "rejected"))
    assert [row["label"] for row in shown] == ["chosen", "rejected"] * 2
    assert [row["pull"].tolist() for row in shown[:2]] == [[0.25, -1], [0.5]]


def test_runs_by_method_are_in_the_order_of_seeds():
    runs = parameters("02", seeds=[3, 1]).by_method()
    assert {m: [(r.row.method, r.seed) for r in some] for m, some in runs.items()} == {
        m: [(m, 3), (m, 1)] for m in ("dpo", "ppo")
    }


def test_what_was_logged_is_told_by_method_and_without_an_oracle_nothing_of_it():
    ppo = {key: 2.0 for key in ("score", "oracle", "kl", "entropy", "clip_share", "explained_variance")}
    histories = {"dpo": [[{"loss": 1.0, "accuracy": 0.5}] * 3] * 2, "ppo": [[ppo] * 5] * 2}
    panels = logged(histories, oracle=True)
    share, curves = panels["DPO: loss"]
    assert share.tolist() == [0, 0.5, 1] and curves.tolist() == [[1, 1, 1]] * 2
    assert set(panels) - set(logged(histories, oracle=False)) == {"PPO: oracle's utility"}


def test_how_a_policy_speaks_and_what_it_gains(module_cache):
    given = {"source": "world:conflict", "train_pairs": 64, "test_pairs": 16, "measurement": {"finals": 2, "probe": 8}}
    p = parameters("02", **SMALL | given)
    (first, _), eos = p.prompts().messages(), p.base_model.tokenizer().eos_token_id
    assert well_formed("answers", [first, first], ["use the wire .", "use the use"]) == 0.5
    good, bad = "sorry i can not help .", "the the"
    samples = [([1], [5, eos]), ([1], [5, 6])]

    def says(sampled):
        return Answers(samples, [good, bad], samples, sampled, np.zeros(2), np.zeros(2))

    assert p.speech(says([good, good])) == {
        "distinct": 0.5, "utility": -2, "well-formed": 1, "D' well-formed": 0.5, "D' ended": 0.5
    }  # fmt: skip
    gain = p.gain(says([good, good]), says([good, bad]))  # a fault and no refusal
    assert gain.value == pytest.approx((p.utility.utility(_prompt(p, 1), bad) + 2) / 2)


def _prompt(p, i):
    from preflab.data.worlds import Prompt

    return Prompt.parse(p.prompts().messages()[i][-1]["content"])


# --- figures --------------------------------------------------------------------------------------

SOME = Interval(-0.5, -0.7, -0.3)
DEGRADED = Outcome("degraded", SOME, SOME, SOME, SOME)


def test_an_order_that_a_setting_does_not_have_stays_empty():
    cells = {("twice", "A → B"): ("a → a", DEGRADED), ("both", "B → A"): ("b → a", DEGRADED)}
    figure = plots_01.outcome_map(cells)
    assert [text.get_text() for text in figure.axes[0].texts].count("degraded") == 2
    mesh = figure.axes[0].collections[0]
    assert np.ma.getmaskarray(mesh.get_array()).reshape(2, 2).tolist() == [[False, True], [True, False]]


def test_one_objective_is_one_line_and_the_legend_names_both_stages():
    figure = plots_01.margin_paths({"a\na → a": {"a": [SOME] * 3}, "b\nb → c": {"b": [SOME] * 3, "c": [SOME] * 3}})
    assert [len(axis.containers) for axis in figure.axes] == [1, 2]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["trained in Stage 1", "trained in Stage 2"]
    assert not any(axis.get_legend() for axis in figure.axes)  # nothing lies on a panel's points


def test_every_transition_has_a_colour():
    assert list(plots_01.TRANSITION_COLOURS) == list(TRANSITIONS)


def under_the_legend(axis):
    axis.figure.canvas.draw()
    box = axis.get_legend().get_window_extent()
    return sum(box.contains(*axis.transData.transform(point)) for line in axis.lines for point in line.get_xydata())


def test_legends_of_g_cover_no_curve(rng):
    x = np.linspace(0, 1, 11)
    g = {m: {part: rng.normal(size=(2, 11)) for part in COMPONENTS} for m in ("dpo", "ppo")}
    for axis in plots_02.six_panels({"dpo": x, "ppo": x}, g, g).axes:
        assert under_the_legend(axis) == 0
    epochs = {part: rng.normal(size=(3, 2, 11)) for part in measured.SIGNS}
    for axis in plots_02.inner_epochs(x, epochs).axes:
        assert under_the_legend(axis) == 0
        assert [text.get_text() for text in axis.get_legend().get_texts()] == ["epoch 1", "epoch 2", "epoch 3"]


def test_equal_weights_have_no_tertiles():
    equal, spread = np.full(9, 0.05), np.arange(9.0)
    dpo, ppo = {"start": equal, "end": spread}, {"start": spread, "end": spread}
    figure = plots_02.weight_distributions({"dpo": dpo, "ppo": ppo})
    assert [len(axis.lines) for axis in figure.axes] == [0, 2, 2, 2]


def test_a_token_picture_says_what_its_colours_scale_and_cuts_long_prompts():
    row = {"label": "DPO chosen", "prompt": "why\n" * 100, "tokens": ["a", "b"], "pull": np.array([1.0, -0.5])}
    axis, bar = plots_02.token_picture([row]).axes
    assert "share of the method's largest" in bar.get_xlabel()
    assert max(len(text.get_text()) for text in axis.texts) == 138


# --- the overview ---------------------------------------------------------------------------------


def test_an_overview_has_every_value_by_section_and_marks_what_differs(capsys):
    p = parameters("01", train_pairs=96, lora={"rank": 2}, settings={"x": ["world:conflict", "helpful", "harmless"]})
    Run.overview(SimpleNamespace(parameters=p, device="cpu"))
    told = " ".join(capsys.readouterr().out.split())
    assert "lora *rank 2, alpha 16, dropout 0.0" in told and "*train_pairs 96, test_pairs 200" in told
    assert 'settings *x ["world:conflict", "helpful", "harmless"]' in told
    assert told.endswith("* differs from this notebook's own value")
    for name in p.values():
        assert re.search(rf"\b{re.escape(name.partition('.')[2] or name)} ", told), name
    Run.overview(SimpleNamespace(parameters=parameters("02"), device="cpu"))
    assert capsys.readouterr().out.endswith("all values are this notebook's own\n")


# --- the cells that notebooks show in full --------------------------------------------------------

MODELS = [("gpt_neox", 0), ("llama", 0), ("gpt_neox", 4), ("llama", 4)]


@pytest.mark.parametrize(("architecture", "rank"), MODELS)
def test_the_forward_mode_pass_of_02_is_the_librarys(architecture, rank, make_model, make_rows, tokenizer):
    policy, rows, pad = make_model(architecture, rank=rank), make_rows(6), tokenizer.pad_token_id
    final = collate_responses([(r["prompt_ids"], r["chosen_ids"]) for r in rows[4:]], pad, policy.device)
    trained = parameters_of(policy)
    names = {"policy": policy, "batch": collate(rows[:4], pad, policy.device), "parameters": trained}
    names["v"] = nll_gradient(policy, [final], trained)
    imports = next(cell.source for cell in cells("02") if "from torch.autograd import forward_ad" in cell.source)
    exec("\n".join(line for line in imports.splitlines() if "import" in line and "figures" not in line), names)
    exec(shown_cells("02", "inputs = {", "inputs = {"), names)
    torch.testing.assert_close(names["s"], token_alignment(policy, names["batch"], names["v"]), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("architecture", "rank"), MODELS)
def test_the_optimiser_step_of_01_starts_at_ln_2_and_orders_both_pairs(architecture, rank, module_cache, capsys):
    given = {**SMALL, "base": {**SMALL["base"], "architecture": architecture}, "lora": {"rank": rank}}
    p = parameters("01", **given)
    model = p.base_model.load()
    names = {"P": p, "all_settings": p.all_settings(), "model": model, "tokenizer": p.base_model.tokenizer()}
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    imports = next(cell.source for cell in cells("01") if "import torch.nn.functional" in cell.source)
    exec("\n".join(line for line in imports.splitlines() if "import" in line and "figures" not in line), names)
    exec(shown_cells("01", "pairs = P.source_of", "with torch.no_grad():\n    moved"), names)
    told = capsys.readouterr().out
    assert "loss 0.6931, margins [0.0, 0.0]" in told
    assert "same as the library's: True" in told and "same gradient: True" in told
    assert (names["after"].margins > 0).all() and names["after"].loss.mean() < np.log(2)
    assert all(torch.equal(v, weights[k]) for k, v in p.base_model.load().state_dict().items())


# --- texts ----------------------------------------------------------------------------------------


def test_a_stage_is_never_called_by_the_name_of_a_claim():
    words = re.compile(r"\bS[12]\b")
    for cell in cells("01"):
        for line in cell.source.splitlines():
            claims = line.startswith("| S") or "intervals of S2 and S4" in line
            assert claims or not words.search(line), line
    figures = (project_root() / "lib" / "preflab" / "figures" / "sequential.py").read_text()
    assert not words.search(figures)


@pytest.mark.parametrize("number", SOURCES)
def test_a_line_of_text_comes_before_long_work(number):
    code = [cell.source for cell in cells(number) if cell.cell_type == "code"]
    (loads,) = [c for c in code if "P.base_model.load()" in c]
    assert loads.startswith("print(") and "trained once" in loads


# --- exercises ------------------------------------------------------------------------------------


def exercises(number):
    return cells(number)[-1].source


def given_values(number):
    """Every `name: type = value` that the exercises tell to write into the parameters cell."""
    text = " ".join(exercises(number).split())
    found = re.findall(r"`?(\w+): (?:dict|str) = (\{[^`]*?\}(?=`| ```)|\"\w+\")", text)
    return [(name, ast.literal_eval(value)) for name, value in found]


@pytest.mark.parametrize(("number", "fields"), [
    ("01", ["stage2_reference", "settings", "lora", "pair_training", "settings"]),
    ("02", ["measurement", "measurement", "reward", "reward", "sample_training"]),
])  # fmt: skip
def test_values_that_exercises_give_are_possible(number, fields):
    given = given_values(number)
    assert [name for name, _ in given] == fields
    for name, value in given:
        p = parameters(number, **{name: value})
        assert p.changed(defaults(SOURCES[number]))
        assert p.phases() if number == "01" else p.planned()


def test_exercise_2_of_01_goes_from_conflict_to_agreement():
    made = next(value for name, value in given_values("01") if name == "settings")
    found = [s.relation["correlation"] for s in parameters("01", settings=made).all_settings()]
    assert found == pytest.approx([-0.5, 0, 0.5], abs=0.01)


def test_exercise_4_of_01_learns_from_new_pairs_of_the_same_objective(module_cache):
    (twice,) = [value for name, value in given_values("01") if "twice" in value]
    p = parameters("01", **SMALL, settings=twice, train_pairs=32, test_pairs=16, prompts=2, max_new_tokens=8)
    setting = p.all_settings()[0]
    first, second = (p.trained_on(setting, ("helpful",) * n, 0).rows().to_list() for n in (1, 2))
    assert len(first) == len(second) == 32 and first != second
    assert setting.orders == [("helpful", "helpful")]


def test_exercise_4_of_02_divides_by_the_weight():
    (code,) = re.findall(r"```python\n(.*?)```", exercises("02").partition("5. ")[0], re.S)
    g = {"ppo": {part: np.ones((2, STEPS)) for part in COMPONENTS}}
    assert result(code, {"np": np, "along": {"ppo": RUNS}, "g": g, "measured": measured}) == {
        "bottom": 1, "middle": 1, "top": 1
    }  # fmt: skip


def test_exercise_5_of_02_splits_the_first_token_from_the_rest():
    (code,) = re.findall(r"```python\n(.*?)```", exercises("02").partition("5. ")[2], re.S)
    mask = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1]])
    c = DPO().weigh(torch.zeros(2), mask[:, 1:]).c
    pull = torch.tensor([[0.0, 1.0, 2.0], [4.0, 8.0, 16.0]])
    found = result(code, {"batch": {"completion_mask": mask}, "c": c, "pull": pull})
    assert found == {"first token": 5, "the rest": 26}


def result(code, names):
    """The value of the last line, as a notebook would show it."""
    *lines, last = ast.parse("\n".join(line.removeprefix("   ") for line in code.splitlines())).body
    exec(compile(ast.Module(lines, []), "exercise", "exec"), names)
    return eval(compile(ast.Expression(last.value), "exercise", "eval"), names)


@pytest.mark.parametrize("number", SOURCES)
def test_exercises_say_how_to_rerun(number):
    told = " ".join(exercises(number).split())
    assert "*Run > Run All Cells*. What is trained already does not train again." in told
