"""Pictures for every reader: colours that are told apart by every kind of eye, and a figure in words."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from IPython.core.interactiveshell import InteractiveShell
from matplotlib.colors import to_rgb
from nbclient import NotebookClient
from nbconvert import HTMLExporter, SlidesExporter
from nbformat import v4

from preflab.figures import (
    ablations,
    common_mode,
    coordination,
    dynamics,
    forgetting,
    mechanism,
    objective_map,
    optimisers,
    sequential,
    start_here,
)
from preflab.figures.described import LONGEST, described
from preflab.margins import Outcome
from preflab.paths import project_root
from preflab.running import run as running
from preflab.statistics import Interval

MAKING = project_root() / "docs" / "making"

# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB.
SEEN = {
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
}
APART = 0.2  # of colours in sRGB from 0 to 1; of kept and lost it was 0.05 once

# What is told apart in one picture: its colour, and the mark or dash that says the same again; None is colour alone.
ALONE = {
    "00, bars": [start_here.TOWARDS, start_here.AWAY],
    "00, objectives": start_here.OBJECTIVES,
    "01, transitions": sequential.TRANSITION_COLOURS.values(),
    "01, stages": sequential.COLOURS.values(),
    "02, thin lines": [dynamics.COLOURS[part] for part in ("positive", "negative")],
    "02, borders": [dynamics.COLOURS[part] for part in ("bottom", "middle", "top")],
    "03, families": ablations.FAMILY_COLOURS.values(),
    "04, parts": [colour for colour, *_ in coordination.PARTS.values()],
    "06, lines": forgetting.COLOURS[:3],
    "08, optimisers": optimisers.OPTIMISERS.values(),
    "09, bars": [colour for _, colour in common_mode.LOOKS.values()],
}
MARKED = {
    "05, cosines": [(colour, style) for colour, style, _ in mechanism.LINES.values()],
    "05, opposition": list(zip(mechanism.COLOURS[:9], "os^DvP*X", strict=False)),
    "08, rungs": list(optimisers.LOOKS.values()),
}


def seen(colours, matrix):
    rgb = np.array([to_rgb(colour) for colour in colours])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return np.clip(linear @ np.transpose(matrix), 0, 1) ** (1 / 2.4)


@pytest.mark.parametrize("eye", SEEN)
@pytest.mark.parametrize("picture", [*ALONE, *MARKED])
def test_what_is_told_apart_differs_in_colour_or_in_its_mark(picture, eye):
    looks = MARKED.get(picture) or [(colour, None) for colour in ALONE[picture]]
    points = seen([colour for colour, _ in looks], SEEN[eye])
    for i, (_, mark) in enumerate(looks):
        for j in range(i):
            assert looks[j][1] != mark or np.linalg.norm(points[i] - points[j]) > APART, (i, j)


def test_the_measure_sees_what_was_wrong_with_kept_and_lost():
    green, red = seen(["#4c9f70", "#d1495b"], SEEN["deuteranopia"])
    assert np.linalg.norm(green - red) < APART


WORLDS = pd.DataFrame(
    {"strength": 0.95, "other_strength": 0.75, "compatibility": [-0.04, 0.8], "share": [-0.04, 0.5], "transfer": 1.0}
)
PAIRS = pd.DataFrame(
    {"own": ["a", "b"], "other": ["b", "a"], "share": [-0.04, 0.5], "cosine": 0.1, "order": [0.1, 0.2]}
)


PARTS = {part: np.ones((1, 1)) for part in ("whole", "positive", "negative")}
SOME = Interval(-0.5, -0.7, -0.3)


def words(axis):
    return [text.get_text() for text in [*axis.texts, *axis.get_xticklabels()]]


def test_a_map_has_no_minus_zero():
    maps = forgetting.maps(WORLDS, {"change": "share"}), objective_map.matrices(PAIRS, {"change": ("share", 1.0)})
    for figure in maps:
        assert "+0.0" in words(figure.axes[0]) and "-0.0" not in words(figure.axes[0])
    assert {"0.0", "0.8"} <= set(words(maps[0].axes[0]))


def test_every_colour_bar_says_what_it_scales():
    measures = {"compatibility": "compatibility", "transfer": "transfer"}
    figures = [
        forgetting.maps(WORLDS, {"change": "share"}),
        forgetting.forecasts(WORLDS, measures),
        objective_map.matrices(PAIRS, {"change": ("share", 1.0), "cosine": ("cosine", 1.0)}),
        sequential.outcome_map({("a", "A → B"): ("a → b", Outcome("degraded", SOME, SOME, SOME, SOME))}),
        dynamics.token_picture([{"label": "", "prompt": "", "tokens": ["a"], "pull": np.ones(1)}]),
        dynamics.layer_map(["head"], {m: np.ones(1) for m in ("dpo", "ppo")}, {m: PARTS for m in ("dpo", "ppo")}),
    ]
    for figure, n in zip(figures, (1, 1, 2, 1, 1, 2), strict=True):
        bars = [axis for axis in figure.axes if axis.get_label() == "<colorbar>"]
        assert len(bars) == n and all(bar.get_ylabel() or bar.get_xlabel() for bar in bars)
    coloured = [axis for axis in figures[1].axes if axis.get_label() != "<colorbar>"]
    assert all(np.array_equal(axis.collections[0].get_array(), WORLDS.compatibility) for axis in coloured)


def test_texts_with_dollars_are_no_formulas():
    figure = dynamics.token_picture(
        [{"label": "", "prompt": r"$x^{$ and $\alpha$", "tokens": ["$^{$"], "pull": np.ones(1)}]
    )
    figure.canvas.draw()
    assert not any(text.get_parse_math() for text in figure.axes[0].texts)


# --- a figure in words ----------------------------------------------------------------------------


def test_a_figure_is_told_in_its_own_words():
    panels = {"a\nb → c": {"b": [SOME] * 3, "c": [SOME] * 3}, "d": {"b": [SOME] * 3}}
    assert described(sequential.margin_paths(panels)) == (
        "2 panels: a b → c; d. Vertical: policy margin (nats per token). "
        "Legend: trained in Stage 1; trained in Stage 2. Columns: base; Stage 1; Stage 2."
    )
    told = described(objective_map.matrices(PAIRS, {"change": ("share", 1.0)}))
    assert told.startswith(
        "Title: change. Horizontal: the other objective. Vertical: the own objective. Colours: change."
    )
    assert told.endswith("Rows: a; b. Columns: a; b.")
    many = described(objective_map.gains({f"objective {i}": SOME for i in range(100)}, []))
    assert len(many) <= LONGEST and many.endswith(" …") and "\n" not in many
    plt.close("all")


def test_a_run_keeps_the_words_beside_the_picture_and_hands_them_to_what_shows_it(tmp_path, monkeypatch):
    run = object.__new__(running.Run)
    run.staging, run.words = tmp_path, {}
    figure = run.figure("gains", objective_map.gains({"helpful": SOME}, []))
    assert run.words == {"gains.png": described(figure)} and "Rows: helpful." in run.words["gains.png"]
    shell = InteractiveShell()
    monkeypatch.setattr(running, "get_ipython", lambda: shell)
    running._describe_pictures()
    data, told = shell.display_formatter.format(figure)
    assert told["image/png"] == {"alt": described(figure)} and data["image/png"].startswith("iVBOR")
    output = v4.new_output("execute_result", data=data, metadata=told)
    notebook = v4.new_notebook(cells=[v4.new_code_cell("", outputs=[output])])
    slides = SlidesExporter(template_name="offline_slides", extra_template_basedirs=[str(MAKING)])
    for exporter in (HTMLExporter(template_name="classic"), slides):
        assert f'alt="{described(figure)}"' in exporter.from_notebook_node(notebook)[0]


def test_a_kernel_hands_the_words_to_the_notebook():
    """Its own backend, loaded at the first figure, would put another formatter in place."""
    start = "from preflab.running import run\nrun.theme()\nrun._describe_pictures()"
    lines = ["import matplotlib.pyplot as plt", "figure, axis = plt.subplots()", "axis.set_title('own words')"]
    draw = "\n".join([*lines, "plt.close()", "figure"])
    notebook = v4.new_notebook(cells=[v4.new_code_cell(start), v4.new_code_cell(draw)])
    NotebookClient(notebook, kernel_name="python3").execute()
    (output,) = notebook.cells[1].outputs
    assert output.metadata == {"image/png": {"alt": "Title: own words."}}
