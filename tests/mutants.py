"""Mutation testing: break one thing in a module that decides numbers or verdicts, and see whether a test fails.

    make mutants                               100 mutants, seed 0
    .venv/bin/python tests/mutants.py --n 40 --seed 1

cosmic-ray (https://cosmic-ray.readthedocs.io) lists the mutants and writes them. A sample of them is drawn with a seed.
Each is tried in a copy of the tree, one copy for each worker, with the test files that TESTS names for its module. The
working tree stays as it is. What was tried is kept in results/mutants.jsonl and is not tried again as long as the
library, the mutant and its test files stay the same; so an interrupted run goes on where it ended.
"""

import argparse
import difflib
import hashlib
import importlib
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

from cosmic_ray import plugins
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code

ROOT = Path(__file__).resolve().parents[1]
LIB = "lib/preflab"
KEPT = ROOT / "results" / "mutants.jsonl"

TESTS = {  # module: the test files that concern it, the closest first
    "adapters.py": "adapters mechanism",
    "alignment.py": "alignment layout live dynamics",
    "claims/__init__.py": "claims_by_hand claims claims_dynamics coordination judging lectures_03_04 figures",
    "claims/both_orders.py": "forgetting objective_map registration",
    "claims/ablations.py": "claims_by_hand judging lectures_03_04 registration",
    "claims/common_mode.py": "claims_common_mode registration",
    "claims/coordination.py": "claims_by_hand coordination lectures_03_04 registration",
    "claims/dynamics.py": "claims_by_hand claims_dynamics dynamics registration",
    "claims/forgetting.py": "forgetting registration",
    "claims/mechanism.py": "mechanism registration",
    "claims/objective_map.py": "objective_map registration",
    "claims/registration.py": "registration",
    "claims/sequential.py": "claims_by_hand claims lectures_01_02",
    "common_mode.py": "common_mode",
    "data/agreement.py": "rated pairs",
    "data/generators.py": "rated pairs",
    "data/keeping.py": "pairs rated",
    "data/pairs.py": "pairs rated stages identity",
    "data/worlds/*/*.py": "worlds guides rewards",
    "data/worlds/*.py": "worlds guides rewards stages",
    "experiments/ablations.py": "lectures_03_04 rules parameters identity",
    "experiments/common_mode.py": "common_mode parameters identity",
    "experiments/coordination.py": "lectures_03_04 coordination parameters identity",
    "experiments/dynamics.py": "lectures_01_02 parameters coordination dynamics identity",
    "experiments/experiment.py": "parameters lectures_01_02 bad_input coordination identity dynamics sequential",
    "experiments/forgetting.py": "forgetting parameters identity",
    "experiments/g_dynamics.py": "gates lectures_01_02 parameters identity dynamics",
    "experiments/mechanism.py": "mechanism parameters identity",
    "experiments/objective_map.py": "objective_map parameters identity",
    "experiments/optimisers.py": "optimiser parameters identity",
    "experiments/sequential.py": "lectures_01_02 parameters identity sequential",
    "experiments/two_stages.py": "sequential forgetting parameters identity",
    "experiments/variants.py": "parameters rules coordination lectures_03_04 identity",
    "dyads.py": "objective_map",
    "fluctuation.py": "fluctuation",
    "forecast.py": "forecast mechanism",
    "gates.py": "gates",
    "generation.py": "generation from_samples stages",
    "geometry.py": "geometry mechanism",
    "judging.py": "judging lectures_03_04 coordination figures",
    "layout.py": "layout likelihood alignment",
    "likelihood.py": "likelihood layout from_pairs stages",
    "live.py": "live rules stages",
    "margins.py": "margins claims lectures_01_02 sequential",
    "measured.py": "lectures_01_02 lectures_03_04 dynamics coordination figures",
    "methods/*.py": "methods from_pairs from_samples rules stages parameters",
    "mixed.py": "forgetting",
    "optimiser.py": "optimiser",
    "rewards.py": "rewards coordination from_samples stages",
    "rules.py": "rules coordination from_samples",
    "stages/alignment.py": "dynamics stages parameters identity",
    "stages/answers.py": "stages coordination dynamics",
    "stages/common_mode.py": "common_mode identity",
    "stages/course.py": "mechanism identity",
    "stages/optimised.py": "optimiser identity",
    "stages/base.py": "bases stages parameters identity",
    "stages/given.py": "pretrained identity",
    "stages/gradients.py": "objective_map identity",
    "stages/*.py": "stages dynamics identity",
    "statistics.py": "statistics margins claims claims_dynamics",
    "training/from_pairs.py": "from_pairs stages live parameters",
    "training/from_samples.py": "from_samples stages live parameters",
    "training/reward.py": "rewards stages parameters",
    "training/sft.py": "sft bases parameters",
    "training/trl.py": "sft rewards",
    "training/*.py": "from_pairs from_samples stages parameters",
    "weightings.py": "rules methods from_pairs from_samples alignment",
}

# One or two near neighbours for each operator. All of cosmic-ray's would give a + eleven mutants and would flatter:
# floats and tensors raise at once under <<, ^ or ~, and a class without its decorator does not even import.
OPERATORS = [
    *(f"ReplaceBinaryOperator_{a}_{b}" for a, b in (
        ("Add", "Sub"), ("Sub", "Add"), ("Mul", "Div"), ("Div", "Mul"), ("FloorDiv", "Mul"), ("Mod", "Mul"),
        ("Pow", "Mul"), ("BitAnd", "BitOr"), ("BitOr", "BitAnd"), ("BitXor", "BitAnd"),
    )),
    *(f"ReplaceComparisonOperator_{a}_{b}" for a, b in (
        ("Lt", "LtE"), ("Lt", "GtE"), ("LtE", "Lt"), ("LtE", "Gt"), ("Gt", "GtE"), ("Gt", "LtE"), ("GtE", "Gt"),
        ("GtE", "Lt"), ("Eq", "NotEq"), ("NotEq", "Eq"), ("Is", "IsNot"), ("IsNot", "Is"),
    )),
    *(f"ReplaceUnaryOperator_{a}" for a in ("Delete_USub", "Delete_Not", "Delete_Invert")),
    *("NumberReplacer", "AddNot", "ReplaceAndWithOr", "ReplaceOrWithAnd"),
    *("ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "ReplaceBreakWithContinue", "ReplaceContinueWithBreak"),
    *("ZeroIterationForLoop", "ExceptionReplacer"),
]  # fmt: skip

# The slowest: they record every call of a build, or start processes that import everything, and look at no new number.
LEFT_OUT = (
    "tests/test_identity.py::test_what_a_build_calls_is_in_its_identity",
    "tests/test_sequential.py::test_stages_do_not_depend_on_the_number_of_processes",
    "tests/test_sequential.py::test_a_made_world_is_a_setting_that_worker_processes_know_too",
)

# Imported once, before the copies are tried one after the other: no module of this project.
SLOW_TO_IMPORT = ("pytest", "torch", "transformers", "peft", "trl", "datasets", "accelerate", "pandas", "pydantic")
SLOW_TO_IMPORT += ("scipy.stats", "matplotlib.pyplot", "seaborn", "safetensors.torch", "papermill", "jupytext", "gguf")
SLOW_TO_IMPORT += tuple(f"trl.trainer.{name}_trainer" for name in ("dpo", "kto", "reward", "sft"))


@dataclass(frozen=True)
class Mutant:
    module: str  # below lib/preflab
    line: int
    before: str
    after: str

    @property
    def diff(self) -> str:
        lines = difflib.unified_diff(self.before.splitlines(), self.after.splitlines(), lineterm="", n=0)
        return "\n".join(f"    {line}" for line in list(lines)[2:] if not line.startswith("@@"))

    @property
    def key(self) -> str:
        """Of everything that its outcome rests on."""
        texts = [library(), self.module, self.after, (ROOT / "tests" / "conftest.py").read_text()]
        return digest(*texts, *(f"{file}\n{(ROOT / file).read_text()}" for file in tests_of(self.module)))


def digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


@cache
def library() -> str:
    return digest(*(f"{file}\n{file.read_text()}" for file in sorted((ROOT / LIB).rglob("*.py"))))


def tests_of(module: str) -> list[str]:
    """Of the first row of TESTS that fits, and the guards of every module."""
    names = next(names for pattern, names in TESTS.items() if fnmatch(module, pattern))
    return [f"tests/test_{name}.py" for name in [*names.split(), "guards"]]


# --- which mutants --------------------------------------------------------------------------------

Place = tuple[Path, str, int, int]  # module, operator, occurrence of the operator in it, line


def places() -> list[Place]:
    """Where a mutant can be made, in a fixed order."""
    modules = {path for pattern in TESTS for path in (ROOT / LIB).glob(pattern)}
    return [place for path in sorted(modules) for place in places_in(path)]


def places_in(path: Path) -> Iterator[Place]:
    nodes = list(ast_nodes(get_ast(path.read_text())))
    for name in OPERATORS:
        operator = plugins.get_operator(f"core/{name}")()
        found = [(node, start[0]) for node in nodes for start, _ in operator.mutation_positions(node)]
        for occurrence, (node, line) in enumerate(found):
            if decides(node) and not (name == "AddNot" and is_turned_otherwise(node)):
                yield path, name, occurrence, line


def mutant_at(place: Place) -> Mutant:
    path, name, occurrence, line = place
    source = path.read_text()
    after = mutate_code(source, plugins.get_operator(f"core/{name}")(), occurrence)
    return Mutant(path.relative_to(ROOT / LIB).as_posix(), line, source, after)


def decides(node) -> bool:
    """Whether the code here can decide a number. Annotations and aliases of types do not, nor the texts of errors, nor
    how a number is printed in a text; and what stands below TYPE_CHECKING never runs."""
    if node.type == "if_stmt" and node.children[1].get_code().strip() == "TYPE_CHECKING":
        return False
    if node.get_code().strip() == "|" and any(child.get_code().strip() == "None" for child in node.parent.children):
        return False
    while (parent := node.parent) is not None:
        annotation = {"annassign": parent.children[1:2], "tfpdef": parent.children[2:]}.get(parent.type, [])
        returns = [parent.annotation] if parent.type == "funcdef" else []
        if parent.type in ("raise_stmt", "fstring_format_spec") or any(node is x for x in [*annotation, *returns]):
            return False
        node = parent
    return True


def is_turned_otherwise(node) -> bool:
    """An `if` whose condition other operators turn round already."""
    condition = node.children[2 if node.type == "test" else 1]
    return condition.type in ("comparison", "not_test")


# --- one mutant -----------------------------------------------------------------------------------

COPY: list[Path] = []  # this worker's


def start_worker(folder: Path, worker_number) -> None:
    """A copy of the tree of its own, as git would commit it now; and the libraries, imported once."""
    with worker_number.get_lock():
        number = worker_number.value = worker_number.value + 1
    COPY[:] = [folder / str(number)]
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True)
    for name in listed.stdout.decode().splitlines():
        if (ROOT / name).is_file():
            (COPY[0] / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, COPY[0] / name)
    os.environ |= {"PYTHONPATH": str(COPY[0] / "lib"), "PYTHONDONTWRITEBYTECODE": "1", "MPLBACKEND": "agg"}
    sys.path.insert(0, str(COPY[0] / "lib"))
    for name in SLOW_TO_IMPORT:
        importlib.import_module(name)


def tried(module: str | None, text: str | None, files: list[str], limit: float) -> dict:
    """What the tests say of the copy, with `text` in the place of the module."""
    path = COPY[0] / LIB / module if module else None
    original = path.read_text() if path else None
    began = time.monotonic()
    try:
        if path:
            path.write_text(text)
        status, output = in_a_child(files, limit)
    finally:
        if path:
            path.write_text(original)
    outcome = {0: "survived", None: "caught: it hung"}.get(status, "caught")
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)
    return {"outcome": outcome, "by": failed[:1], "seconds": round(time.monotonic() - began, 1), "end": output[-800:]}


def in_a_child(files: list[str], limit: float) -> tuple[int | None, str]:
    """pytest in a fork of this process, which has the libraries already: its exit status, None if it hung.

    `limit` is in seconds of CPU, so that a busy machine catches nothing."""
    log = COPY[0] / "pytest.log"
    if not (child := os.fork()):
        os.setsid()
        resource.setrlimit(resource.RLIMIT_CPU, (int(limit), int(limit) + 5))
        os.chdir(COPY[0])
        with log.open("w") as out:
            os.dup2(out.fileno(), 1), os.dup2(out.fileno(), 2)
        import pytest

        options = ["-x", "-q", "-p", "no:cacheprovider", f"--basetemp={COPY[0] / 'tmp'}", "--tb=line"]
        options += [f"--deselect={name}" for name in LEFT_OUT]
        status = 99
        try:
            status = pytest.main([*options, *files])
        finally:
            sys.stdout.flush()
            os._exit(int(status))
    done, end = (0, 0), time.monotonic() + 10 * limit
    try:
        while (done := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < end:
            time.sleep(0.05)
    finally:  # too late, or interrupted: with all that it has started
        if done == (0, 0):
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
    return (None if done == (0, 0) else os.waitstatus_to_exitcode(done[1])), log.read_text(errors="replace")


# --- all of a sample ------------------------------------------------------------------------------


def run(sample: list[Mutant], workers: int) -> dict[str, dict]:
    """What became of each mutant, by its key. Test files come first, without a mutant: they have to pass."""
    known = {row["key"]: row for row in map(json.loads, KEPT.read_text().splitlines())} if KEPT.exists() else {}
    files = sorted({file for mutant in sample for file in tests_of(mutant.module)})
    whole = {file: digest(library(), file, (ROOT / file).read_text()) for file in files}
    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.get_context("fork")
        start = Path(folder), context.Value("i", 0)
        with ProcessPoolExecutor(workers, context, start_worker, start) as pool:
            jobs = {whole[file]: (None, None, [file], 900) for file in files if whole[file] not in known}
            keep(pool, jobs, known, "test files")
            if bad := [file for file in files if known[whole[file]]["outcome"] != "survived"]:
                raise SystemExit(f"error: without a mutant these fail: {', '.join(bad)}\n{known[whole[bad[0]]]['end']}")
            jobs = {}
            for mutant in sample:
                if mutant.key not in known:
                    usual = sum(known[whole[file]]["seconds"] for file in tests_of(mutant.module))
                    jobs[mutant.key] = (mutant.module, mutant.after, tests_of(mutant.module), 60 + 3 * usual)
            keep(pool, jobs, known, "mutants")
    return known


def keep(pool: ProcessPoolExecutor, jobs: dict[str, tuple], known: dict[str, dict], what: str) -> None:
    KEPT.parent.mkdir(exist_ok=True)
    futures = {pool.submit(tried, *job): key for key, job in jobs.items()}
    for number, future in enumerate(as_completed(futures), 1):
        key = futures[future]
        known[key] = {"key": key, "what": jobs[key][0] or jobs[key][2][0], **future.result()}
        with KEPT.open("a") as file:
            file.write(json.dumps(known[key]) + "\n")
        print(f"{what}: {number} of {len(jobs)}  {known[key]['what']} {known[key]['outcome']}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Mutation testing of the modules that decide numbers and verdicts.")
    parser.add_argument("--n", type=int, default=100, help="mutants in the sample (100)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (0)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (one for each core)")
    asked = parser.parse_args()
    all_of_them = places()
    sample = [mutant_at(place) for place in random.Random(asked.seed).sample(all_of_them, asked.n)]
    began = time.monotonic()
    outcomes = run(sorted(sample, key=lambda m: (m.module, m.line)), asked.workers)
    left = [mutant for mutant in sample if outcomes[mutant.key]["outcome"] == "survived"]
    print(
        f"\n{len(sample)} of {len(all_of_them)} mutants, seed {asked.seed}: {len(sample) - len(left)} caught, ", end=""
    )
    print(f"{len(left)} survived, in {(time.monotonic() - began) / 60:.0f} min")
    for mutant in sorted(left, key=lambda m: (m.module, m.line)):
        print(f"\n{LIB}/{mutant.module}:{mutant.line}\n{mutant.diff}")


if __name__ == "__main__":
    main()
