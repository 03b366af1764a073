"""Thirty kills at random moments: the same command, given again, ends with the same numbers, and nothing is left.

A notebook, the number of workers, a signal, its victim and the moment are drawn with a seed. The victim is the
command, its kernel or one of its workers. This takes half an hour, so it is no part of `make test`: `make kills`, or
`.venv/bin/pytest -m soak -k of-01` for those of notebook 01.
"""

import itertools
import os
import random
import resource
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from checkouts import NAMES, checkout

PROC = Path("/proc")
SEED, KILLS = 0, 30
LONGEST_RUN = 900  # seconds; a smoke run takes 20, and on a machine that is busy with other things far longer
LONGEST_END = 600  # until a run whose kernel or worker was killed has ended, or all of a killed run is gone
ENDINGS = [signal.SIGHUP, signal.SIGQUIT]  # beside SIGKILL
MARK = "SOAK_CHECKOUT"  # an environment variable, by which all processes of a run are known

pytestmark = [pytest.mark.soak, pytest.mark.skipif(not PROC.is_dir(), reason="needs /proc")]


@dataclass(frozen=True)
class Kill:
    number: int
    name: str
    workers: int
    ending: signal.Signals
    victim: str  # command, kernel or worker
    moment: float  # share of the work that an undisturbed run does while the victim is there

    def __str__(self) -> str:
        what = f"{self.ending.name}-{self.victim}"
        return f"kill-{self.number:02d}-of-{self.name[:2]}-workers-{self.workers}-{what}-{self.moment:.2f}"


def drawn() -> list[Kill]:
    """Every signal to every victim as often as another, and every notebook; everything else at random."""
    rng = random.Random(SEED)
    fates = [*itertools.product([signal.SIGKILL, *ENDINGS], ["command", "kernel", "worker"])] * KILLS
    names = [name for name in NAMES if name not in ("00_start_here", "90_benchmarks")] * KILLS  # which have no workers
    fates, names = fates[:KILLS], names[:KILLS]
    rng.shuffle(names)
    return [
        Kill(n, name, 2 if victim == "worker" else rng.choice([1, 2]), ending, victim, rng.random())
        for n, (name, (ending, victim)) in enumerate(zip(names, fates, strict=True))
    ]


# --- runs and their processes ---------------------------------------------------------------------


def start(root: Path, name: str, workers: int) -> subprocess.Popen:
    words = ["run", name, "--profile", "smoke", "-p", f"hardware={{workers: {workers}}}"]
    (root / "tmp").mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "preflab.running.cli", *words],
        cwd=root,
        env={**os.environ, MARK: str(root), "TMPDIR": str(root / "tmp")},
        stdout=subprocess.PIPE,
        stderr=(root / "stderr").open("w"),
        text=True,
        start_new_session=True,
        preexec_fn=heed_signals,
    )


def heed_signals() -> None:
    """A shell that starts the tests in the background has some ignored, and every child would inherit that."""
    for ending in ENDINGS:
        signal.signal(ending, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # SIGQUIT leaves no core


def alive(root: Path) -> dict[int, str]:
    """Every process of a checkout's runs, and what it is: command, kernel, worker or something else."""
    found = {}
    for folder in PROC.iterdir():
        try:
            if folder.name.isdigit() and f"{MARK}={root}\0".encode() in (folder / "environ").read_bytes():
                found[int(folder.name)] = kind((folder / "cmdline").read_text())
        except OSError:  # gone, or not ours
            continue
    return found


class Work:
    """Processor seconds of all processes of a checkout's runs: a clock that runs slow on a busy machine."""

    def __init__(self, root: Path):
        self.root, self.seconds = root, {}

    def look(self) -> tuple[dict[int, str], float]:
        """The processes that are alive, and what was worked so far."""
        found = alive(self.root)
        for pid in found:
            try:
                ticks = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[11:13]
                self.seconds[pid] = sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
            except OSError:  # gone
                continue
        return found, sum(self.seconds.values())


def kind(command_line: str) -> str:
    words = {"preflab.running.cli": "command", "ipykernel_launcher": "kernel", "spawn_main": "worker"}
    return next((name for word, name in words.items() if word in command_line), "something else")


def until(what, seconds: float):
    """The first true value of what(), or its last value when the time is up."""
    deadline = time.monotonic() + seconds
    while not (value := what()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return value


def finish(process: subprocess.Popen, root: Path) -> str:
    process.communicate(timeout=LONGEST_RUN)
    said = (root / "stderr").read_text()
    assert process.returncode == 0, said
    return said


def left(root: Path) -> dict[str, list[str]]:
    """What stands in the places where a run writes."""
    names = {"results": ["results"], "smoke": ["results", "smoke"], "cache": ["results", "cache"], "tmp": ["tmp"]}
    return {
        name: sorted(file.name for file in root.joinpath(*words).glob("*") if file.suffix != ".lock")
        for name, words in names.items()
    }


@dataclass(frozen=True)
class Undisturbed:
    metrics: bytes
    left: dict[str, list[str]]
    there: dict[str, tuple[float, float]]  # of each victim: work when it is first seen, and last


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """undisturbed(name, workers): a whole run from an empty cache, watched. Once for each."""
    kept = {}

    def watch(name: str, workers: int) -> Undisturbed:
        root = checkout(tmp_path_factory.mktemp("undisturbed"))
        process, work, there = start(root, name, workers), Work(root), {}
        while process.poll() is None:
            found, now = work.look()
            for victim in found.values():
                there[victim] = (there.get(victim, (now, now))[0], now)
            time.sleep(0.05)
        finish(process, root)
        return Undisturbed(metrics(root, name), left(root), there)

    def get(name: str, workers: int) -> Undisturbed:
        if (name, workers) not in kept:
            kept[name, workers] = watch(name, workers)
        return kept[name, workers]

    return get


def metrics(root: Path, name: str) -> bytes:
    return (root / "results" / "smoke" / name / "metrics.json").read_bytes()


# --- the kills ------------------------------------------------------------------------------------


@pytest.mark.timeout(2400)
@pytest.mark.parametrize("kill", drawn(), ids=str)
def test_killed_and_started_again_it_ends_with_the_same_numbers(kill, undisturbed, tmp_path, capsys):
    whole, root = undisturbed(kill.name, kill.workers), checkout(tmp_path)
    process, pid = struck(kill, whole.there[kill.victim], root)
    if kill.victim == "command":
        process.wait(timeout=LONGEST_END)
    else:
        process.communicate(timeout=LONGEST_END)  # it ends by itself
    until(lambda: not alive(root), LONGEST_END)
    stayed, said, lay = alive(root), (root / "stderr").read_text(), left(root)
    with capsys.disabled():
        last = (said.strip().splitlines() or ["(said nothing)"])[-1].replace(str(root), "…")
        print(f"\n{kill}: {'struck' if pid else 'MISSED'}, exit {process.returncode}, {last[:200]}", flush=True)
    assert not stayed
    if pid:
        check_end(kill, process.returncode, said, lay, whole.left)
    finish(start(root, kill.name, kill.workers), root)
    assert until(lambda: not alive(root), LONGEST_END)
    assert metrics(root, kill.name) == whole.metrics
    assert left(root) == whole.left


def struck(kill: Kill, there: tuple[float, float], root: Path) -> tuple[subprocess.Popen, int | None]:
    """Start a run and send the signal. The victim's id is None if the run ended before there was one."""
    rng = random.Random(kill.number)
    process, work = start(root, kill.name, kill.workers), Work(root)
    at = there[0] + kill.moment * (there[1] - there[0])
    while process.poll() is None:
        found, now = work.look()
        victims = [pid for pid, kind in found.items() if kind == kill.victim]
        if victims and now >= at:
            pid = rng.choice(sorted(victims))
            try:
                os.kill(pid, kill.ending)
                return process, pid
            except ProcessLookupError:  # it has just ended
                continue
        time.sleep(0.02)
    return process, None


def check_end(kill: Kill, code: int, said: str, lay: dict[str, list[str]], usual: dict[str, list[str]]) -> None:
    """How a run ends of which something was killed, and what it leaves."""
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert all(line.startswith(("error: ", f"{kill.name}  ")) for line in said.splitlines()), said
    if kill.victim == "command":
        assert code in (-kill.ending, 128 + kill.ending) and not errors
    else:
        assert code == (1 if errors else 0) and len(errors) <= 1, said
        assert not errors or (said.strip().splitlines()[-1] == errors[0] and len(errors[0]) <= 300), said
    if code >= 0:  # it has had the time to clean up
        assert not [name for name in lay["smoke"] if name.startswith(".")]
        assert set(lay["tmp"]) <= set(usual["tmp"])
