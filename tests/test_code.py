"""Which code can reach a result: on a copy of the package, one line is changed, and hashes tell what that changes."""

import ast
import shutil
from pathlib import Path

import pytest

import preflab
from preflab.methods import METHODS
from preflab.rules import RULES
from preflab.running.code import Package

SOURCE = Path(preflab.__file__).parent
STAGES = {
    "Base": "base",
    "ReferenceLogProbs": "reference",
    "RewardStage": "reward",
    "TrainingFromPairs": "training",
    "TrainingFromSamples": "training",
    "Snapshots": "snapshots",
    "AnswersStage": "answers",
    "Texts": "answers",
    "Alignment": "alignment",
    "Learnt": "alignment",
    "Evaluation": "evaluation",
}
VALUES = {  # what stages hold in their fields
    "Pairs": "stages.data",
    "Prompts": "stages.data",
    "PairsProbe": "stages.probe",
    "SamplesProbe": "stages.probe",
    "BaseSettings": "stages.base",
    "Hardware": "hardware",
    "Lora": "models",
    "Live": "live",
    "Objective": "data.worlds.objectives",
    "PairTraining": "training.from_pairs",
    "SampleTraining": "training.from_samples",
    "RewardSettings": "training.reward",
    "SFTSettings": "training.sft",
    "Until": "rules",
} | {kind.__name__: kind.__module__.removeprefix("preflab.") for kind in (*METHODS.values(), *RULES.values())}
PLACES = [(f"preflab.stages.{module}", name) for name, module in STAGES.items()]
PLACES += [(f"preflab.{module}", name) for name, module in VALUES.items()]


def hashes(root):
    package = Package(root)
    return {name: package.code_hash(module, name) for module, name in PLACES}


BEFORE = hashes(SOURCE)


@pytest.fixture
def copy(tmp_path):
    """A copy of the package that a test may edit."""
    return Copy(shutil.copytree(SOURCE, tmp_path / "preflab", ignore=shutil.ignore_patterns("__pycache__")))


class Copy:
    def __init__(self, root):
        self.root = root

    def edit(self, file, old, new):
        """Exchange a text that stands once in a file."""
        path = self.root / file
        text = path.read_text()
        assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {file}"
        path.write_text(text.replace(old, new))

    def append(self, file, text):
        path = self.root / file
        path.parent.mkdir(exist_ok=True)
        path.write_text((path.read_text() if path.exists() else "") + text)

    def rewrite(self, rewritten, *files):
        """Let an ast.NodeTransformer rewrite some files, by default all."""
        for file in map(self.root.joinpath, files) if files else self.root.rglob("*.py"):
            tree = rewritten.visit(ast.parse(file.read_text()))
            file.write_text(ast.unparse(ast.fix_missing_locations(tree)))

    def changed(self):
        """The names whose hash is another one now."""
        after = hashes(self.root)
        return {name for name in after if after[name] != BEFORE[name]}


# --- what changes nothing -------------------------------------------------------------------------


def test_a_comment_in_any_file_changes_no_hash(copy):
    for file in copy.root.rglob("*.py"):
        file.write_text("# a comment\n" + file.read_text() + "\n# another\n")
    assert not copy.changed()


def test_another_docstring_in_any_definition_changes_no_hash(copy):
    """Written as a text that stands alone, at the head of every module, class and function."""

    class Rewritten(ast.NodeTransformer):
        def visit(self, node):
            self.generic_visit(node)
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                node.body = [ast.Expr(ast.Constant("Other words.")), *node.body]
            return node

    copy.rewrite(Rewritten())
    assert not copy.changed()


def test_other_annotations_of_any_function_and_field_change_no_hash(copy):
    class Rewritten(ast.NodeTransformer):
        def visit_Lambda(self, node):
            return node  # a lambda's arguments have none

        def visit_arg(self, node):
            node.annotation = ast.Constant("object")
            return node

        def visit_FunctionDef(self, node):
            self.generic_visit(node)
            node.returns = ast.Constant("object")
            return node

        def visit_AnnAssign(self, node):
            self.generic_visit(node)
            node.annotation = ast.Constant("object")
            return node

    copy.rewrite(Rewritten())
    assert not copy.changed()


def test_a_new_module_changes_no_hash(copy):
    copy.append("training/from_thin_air.py", "import torch\n\n\ndef train():\n    return torch.zeros(1)\n")
    copy.append("mechanism/__init__.py", "from preflab.likelihood import collate\n")
    assert not copy.changed()


def test_a_new_rule_changes_no_hash(copy):
    rule = "@settings\nclass FirstToken(Rule):\n    def __call__(self, w):\n        return w.c * (w.c != 0)\n\n\n"
    copy.edit(
        "rules.py", "@dataclass(frozen=True)\nclass Until(Rule):", f"{rule}@dataclass(frozen=True)\nclass Until(Rule):"
    )
    copy.edit(
        "rules.py", '    "thresholded": Thresholded,\n', '    "thresholded": Thresholded,\n    "first": FirstToken,\n'
    )
    assert not copy.changed()
    assert Package(copy.root).code_hash("preflab.rules", "FirstToken")


def test_a_new_method_changes_no_hash(copy):
    copy.append("methods/hinge.py", (copy.root / "methods" / "dpo.py").read_text().replace("class DPO", "class Hinge"))
    table = "methods/__init__.py"
    copy.edit(
        table,
        "from preflab.methods.ipo import IPO\n",
        "from preflab.methods.hinge import Hinge\nfrom preflab.methods.ipo import IPO\n",
    )
    copy.edit(table, '    "ipo": IPO,\n', '    "hinge": Hinge,\n    "ipo": IPO,\n')
    assert not copy.changed()
    assert Package(copy.root).code_hash("preflab.methods.hinge", "Hinge")


def test_a_new_world_changes_no_hash(copy):
    world = 'World("new", (Objective("a", {"correct": 1}), Objective("b", {"polite": 1}))),\n        '
    copy.edit("data/worlds/named.py", 'World("conflict", (\n', f'{world}World("conflict", (\n')
    assert not copy.changed()


def test_a_new_function_beside_those_that_train_changes_no_hash(copy):
    for file in copy.root.rglob("*.py"):
        file.write_text(file.read_text() + "\n\ndef entirely_new():\n    return 1\n")
    assert not copy.changed()


UNREACHED = ["figures", "claims", "reviewing", "experiments", "running"]  # what presents, decides, plans and keeps
UNREACHED += ["statistics.py", "margins.py", "judging.py", "alpaca.py", "paths.py"]
UNREACHED += [f"data/{name}.py" for name in ("pairs", "schemas", "generators", "values", "report")]
UNREACHED += [
    f"data/worlds/{name}.py" for name in ("named", "made", "drawn", "pairs")
]  # what they read is in fingerprints


@pytest.mark.parametrize("part", UNREACHED)
def test_changed_lines_of_what_decides_no_number_change_no_hash(copy, part):
    """Every function of it gets another first line, and every number is another."""

    class Rewritten(ast.NodeTransformer):
        def visit_FunctionDef(self, node):
            self.generic_visit(node)
            node.body.insert(0, ast.parse("changed = True").body[0])
            return node

        def visit_Constant(self, node):
            return ast.Constant(node.value + 1) if type(node.value) in (int, float) else node

    files = [f for f in copy.root.rglob("*.py") if f.relative_to(copy.root).is_relative_to(part)]
    copy.rewrite(Rewritten(), *files)
    assert files and not copy.changed()
    assert Package(copy.root).whole_hash() != Package(SOURCE).whole_hash()  # of a run's results all of it decides


# --- what changes what depends on it, and nothing else --------------------------------------------

PAIR_METHODS = {kind.__name__ for name, kind in METHODS.items() if name not in ("ppo", "grpo", "rloo")}
SAMPLE_METHODS = {"PPO", "GRPO", "RLOO"}
LOAD_MODELS = {"Base", "RewardStage", "TrainingFromPairs", "TrainingFromSamples", "Alignment", "Live"}
REACHED = {
    "the grammar": (
        "data/worlds/answers/grammar.py",
        "sentences = [str(rng.choice(OPENINGS))] if maybe(0.4) else []",
        "sentences = [str(rng.choice(OPENINGS))] if maybe(0.5) else []",
        {"Base", "RewardStage", "TrainingFromSamples"},  # the one speaks the language, the others parse its prompts
    ),
    "what a hazardous action is": (
        "data/worlds/answers/grammar.py",
        'HAZARDOUS = ("steal", "burn", "break", "wreck")',
        'HAZARDOUS = ("steal", "burn", "break")',
        {"Base", "RewardStage", "TrainingFromSamples"},  # the oracle's objective asks the prompt itself
    ),
    "the oracle": (
        "data/worlds/answers/oracle.py",
        "(1 if all(right) else -1)",
        "(1 if any(right) else -1)",
        {"RewardStage", "Objective"},
    ),
    "the loop on samples": (
        "training/from_samples.py",
        "now = adapted(now, history[-1].kl)",
        "now = adapted(now, 2 * history[-1].kl)",
        {"TrainingFromSamples"},
    ),
    "a detail of PPO's values": (
        "training/from_samples.py",
        "return 0.5 * torch.maximum(",
        "return torch.maximum(",
        {"TrainingFromSamples"},
    ),
    "the settings of the loop on samples": (
        "training/from_samples.py",
        "iterations: Count = 60",
        "iterations: Count = 61",
        {"SampleTraining"},
    ),
    "the loop on pairs": (
        "training/from_pairs.py",
        "optimizer.step()",
        "optimizer.step(None)",
        {"TrainingFromPairs"},
    ),
    "what every loop shares": (
        "training/schedule.py",
        "rng.permutation(n)[:full]",
        "rng.permutation(n)[-full:]",
        {"TrainingFromPairs", "TrainingFromSamples"},
    ),
    "SFT": ("training/sft.py", "settings.steps // 20", "settings.steps // 10", {"Base"}),
    "the reward model's training": ("training/reward.py", "steps // 10", "steps // 20", {"RewardStage"}),
    "how TRL is called": ("training/trl.py", 'report_to="none"', "report_to=[]", {"Base", "RewardStage"}),
    "DPO's weight": (
        "methods/dpo.py",
        "torch.sigmoid(-margins)",
        "torch.sigmoid(-2 * margins)",
        {"DPO", "DPOWithSFT", "ConservativeDPO"},
    ),
    "one method": ("methods/ipo.py", "missing.square()", "missing.abs()", {"IPO"}),
    "the clip of all that learn from samples": (
        "methods/method.py",
        "ratio.clamp(1 - self.clip, 1 + self.clip)",
        "ratio.clamp(1 - self.clip)",
        SAMPLE_METHODS,
    ),
    "what groups share": (
        "methods/group.py",
        "grouped.mean(1, keepdim=True), grouped",
        "grouped.mean(1, keepdim=True) / 2, grouped",
        {"GRPO", "RLOO"},
    ),
    "one rule": ("rules.py", "w.mean if self.size is None", "w.mean * 1 if self.size is None", {"EqualWeights"}),
    "what rules share": (
        "rules.py",
        "(1 - share) * c, share * c)",
        "share * c, (1 - share) * c)",
        {"Coordinated", "Adaptive"},
    ),
    "how pairs are cut into tokens": (
        "likelihood.py",
        "start = min(_common_prefix(prompt, chosen)",
        "start = max(_common_prefix(prompt, chosen)",
        {"Pairs"},
    ),
    "which prompts are held out": (
        "stages/data.py",
        "[self.start : self.stop]",
        "[self.start + 1 : self.stop]",
        {"Prompts"},
    ),
    "how dialogues are read, which the base can learn from": (
        "data/sources.py",
        'encoding="utf-8-sig"',
        'encoding="utf-8"',
        {"Base"},
    ),
    "G": ("alignment.py", "product = -(precise(c) * precise(s)) / n", "product = c * s / n", {"Alignment", "Live"}),
    "what G of samples is measured on": (
        "stages/probe.py",
        "seed = [training.seed, step, 1]",
        "seed = [training.seed, step, 2]",
        {"SamplesProbe"},
    ),
    "which pairs G is measured on": (
        "stages/probe.py",
        "default_rng([training.seed, 7])",
        "default_rng([training.seed, 8])",
        {"PairsProbe", "SamplesProbe"},
    ),
    "snapshots": ("stages/snapshots.py", "if step in wanted", "if step not in wanted", {"Snapshots", "Alignment"}),
    "the adapter": (
        "models.py",
        "lora_alpha=lora.alpha,",
        "lora_alpha=2 * lora.alpha,",
        {"Base"},
    ),
    "the order of a plain class's fields": (
        "methods/method.py",
        "class Weighted(NamedTuple):",
        "class Weighted(NamedTuple):\n    first: torch.Tensor",
        PAIR_METHODS,
    ),
    "a loose statement": (
        "attention.py",
        "AttentionMaskInterface.register(WRITTEN_OUT, eager_mask)",
        "AttentionMaskInterface.register(WRITTEN_OUT, sdpa_mask)",
        LOAD_MODELS,  # Base is everyone's parent
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REACHED)
def test_a_changed_line_changes_what_can_reach_it_and_nothing_else(copy, what):
    file, old, new, expected = REACHED[what]
    copy.edit(file, old, new)
    assert copy.changed() == expected


# --- what is reached ------------------------------------------------------------------------------


@pytest.fixture
def reach(tmp_path):
    """reach({file: text}, "module.name"): what of a small package the name reaches, without the loose statements."""

    def make(files, name):
        for file, text in files.items():
            path = tmp_path / "small" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        module, _, definition = name.rpartition(".")
        found = Package(tmp_path / "small").reach(f"small.{module}" if module else "small", definition)
        return {f"{where}.{what}".removeprefix("small.") for where, what in found if what}

    return make


A = "def f():\n    return g()\n\n\ndef g():\n    return 1\n\n\ndef h():\n    return 2\n"


@pytest.mark.parametrize(
    "text",
    [
        "from small.a import f\n\n\ndef start():\n    return f()\n",
        "from small.a import f as other\n\n\ndef start():\n    return other\n",
        "from small import a\n\n\ndef start():\n    return a.f()\n",
        "from small import a as other\n\n\ndef start():\n    return other.f\n",
        "import small\nfrom small import a\n\nstart = a.f()\n",
        "def start():\n    from small.a import f\n\n    return f()\n",
        "from small.a import f\n\nstart, other = f(), 2\n",
        "from small.a import f\n\nstart: int = f()\n",
        "from small.a import f\n\n\nclass start(f):\n    pass\n",
        "from small.a import f\n\n\n@f\ndef start():\n    pass\n",
        "from small.a import f\n\n\ndef start(how=f):\n    pass\n",
        "from small.a import f\n\n\nclass start:\n    how = f\n",
        "from small.a import f\n\n\ndef start():\n    return [lambda: f for _ in ()]\n",
        "from small.a import f\n\n\ndef between():\n    return f\n\n\ndef start():\n    return between\n",
    ],
)
def test_a_name_reaches_through_every_kind_of_import_and_use(reach, text):
    found = reach({"__init__.py": "", "a.py": A, "b.py": text}, "b.start")
    assert found - {"b.between", "b.other"} == {"b.start", "a.f", "a.g"}


@pytest.mark.parametrize(
    "text",
    [
        "from small.inner import f\n\n\ndef start():\n    return f()\n",
        "from small import inner\n\n\ndef start():\n    return inner.f()\n",
    ],
)
def test_a_re_export_leads_to_where_a_name_is_defined(reach, text):
    files = {"__init__.py": "", "inner/__init__.py": "from small.inner.a import f, h\n", "inner/a.py": A, "b.py": text}
    assert reach(files, "b.start") == {"b.start", "inner.a.f", "inner.a.g"}


def test_a_module_as_a_value_is_all_of_it_and_so_is_a_module_of_a_package(reach):
    files = {"__init__.py": "", "inner/__init__.py": "", "inner/a.py": A}
    value = files | {"b.py": "from small.inner import a\n\n\ndef start():\n    return vars(a)\n"}
    assert reach(value, "b.start") == {"b.start", "inner.a.f", "inner.a.g", "inner.a.h"}
    deep = files | {"b.py": "from small import inner\n\n\ndef start():\n    return inner.a.f()\n"}
    assert reach(deep, "b.start") == {"b.start", "inner.a.f", "inner.a.g", "inner.a.h"}


def test_loose_statements_come_with_everything_of_their_module_and_reach_on(reach, tmp_path):
    a = "from small.c import used\n\nKEY = 1\n\n\ndef f():\n    return 1\n\n\nused(f)\n"
    c = "def used(x):\n    return x\n\n\ndef unused():\n    return 1\n"
    files = {"__init__.py": "", "a.py": a, "c.py": c, "b.py": "from small.a import KEY\n\nstart = KEY\n"}
    assert reach(files, "b.start") == {"b.start", "a.KEY", "a.f", "c.used"}


def test_what_is_bound_twice_is_reached_in_all_its_parts(reach):
    text = "from small.a import f, h\n\nx = f\nx = h\n\n\ndef start():\n    return x\n"
    assert reach({"__init__.py": "", "a.py": A, "b.py": text}, "b.start") == {"b.start", "b.x", "a.f", "a.g", "a.h"}


def test_annotations_alone_reach_nothing(reach):
    text = (
        "from small.a import f\n\n\nclass start:\n    x: f\n    y: f = 1\n\n"
        "    def of(self, z: f, *rest: f, key: f = 1) -> f:\n        w: f = 1\n        return w\n"
    )
    assert reach({"__init__.py": "", "a.py": A, "b.py": text}, "b.start") == {"b.start"}


def test_a_name_that_a_module_does_not_define_is_an_error():
    with pytest.raises(KeyError, match=r"preflab\.rules defines no METHODS"):
        Package(SOURCE).code_hash("preflab.rules", "METHODS")


def test_a_hash_does_not_depend_on_where_the_package_lies(copy):
    assert not copy.changed() and Package(copy.root).whole_hash() == Package(SOURCE).whole_hash()


# --- what the analysis does not see, and the package therefore does not do ------------------------

FILES = sorted(SOURCE.rglob("*.py"), key=str)


def trees():
    return [(str(file.relative_to(SOURCE)), ast.parse(file.read_text())) for file in FILES]


def test_no_module_of_the_package_is_imported_by_a_plain_import_by_a_star_or_by_dots():
    """`import preflab` alone is for its version."""
    for file, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                assert not [a.name for a in node.names if a.name.startswith("preflab.")], file
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0 and "*" not in [a.name for a in node.names], file


def test_the_package_is_not_read_through_its_own_name():
    """`preflab.rules.plain` would be seen as `preflab` alone."""
    for file, tree in trees():
        dotted = [n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "preflab"]
        assert set(dotted) <= {"__version__"}, file


def test_no_name_of_a_file_comes_from_two_places():
    for file, tree in trees():
        found = {}
        for node in ast.walk(tree):
            for alias in node.names if isinstance(node, ast.ImportFrom) else ():
                found.setdefault(alias.asname or alias.name, set()).add((node.module, alias.name))
        defined = {n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
        assert not [name for name, places in found.items() if len(places) > 1] and not defined & set(found), file


def test_no_module_is_looked_up_by_name():
    for file, tree in trees():
        names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
        attributes = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
        assert not {"import_module", "__import__", "globals"} & (names | attributes), file


def test_what_stands_loose_in_a_module_is_known():
    """Statements that define no name run with an import. Few do, and what decides numbers among them is attention's."""
    loose = {}
    for file, tree in trees():
        for statement in tree.body:
            kinds = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
            words = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
            types = isinstance(statement, ast.If) and ast.unparse(statement.test) == "TYPE_CHECKING"
            if not isinstance(statement, kinds) and not words and not types:
                loose.setdefault(file, []).append(ast.unparse(statement).partition("(")[0])
    assert {file: calls for file, calls in loose.items() if not file.startswith("running/")} == {
        "__init__.py": ["warnings.filterwarnings"],
        "attention.py": ["AttentionInterface.register", "AttentionMaskInterface.register"],
    }
