"""A base model that is given by name: a folder, a GGUF file, or a name on the hub."""

from dataclasses import dataclass
from pathlib import Path

from preflab.dequantise import dequantise
from preflab.errors import BadInput
from preflab.paths import MODELS, project_root
from preflab.pretrained import KNOWN
from preflab.progress import note
from preflab.stages.stage import Stage
from preflab.weights import Weights


@dataclass(frozen=True)
class Dequantised(Stage):
    """A GGUF file as a plain folder, made once. Everything that takes a model takes it from there."""

    weights: Weights

    @property
    def location(self) -> str:
        """The folder of the model."""
        return self.load()

    def load(self) -> str:
        return str(self.folder / "model")

    def build(self, folder: Path) -> None:
        note(f"{self.weights.path.name}: to a plain folder; later runs load it")
        (folder / "model").mkdir(exist_ok=True)
        dequantise(self.weights.path, folder / "model")


def given_model(name: str) -> Weights | Dequantised | None:
    """What lies on this disk under a name of `base.model`; None for a name on the hub.

    A relative path begins at the checkout. Raises BadInput for a name that can only be a path and leads nowhere.
    """
    path = project_root() / Path(name).expanduser()
    if path.is_dir():
        return Weights(path)
    if path.is_file():
        return Dequantised(Weights(path))
    if name in {f"{MODELS}/{known}" for known in KNOWN}:
        raise BadInput(f"base.model={name!r}: no such folder, run: preflab model {Path(name).name}")
    if name.startswith((".", "/", "~")) or name.endswith(".gguf"):
        raise BadInput(f"base.model={name!r}: no such folder or file at {path}, expected one, or a name on the hub")
    return None
