"""A base model that is given by name: a folder, a GGUF file, or a name on the hub."""

import os
from dataclasses import dataclass
from pathlib import Path

from preflab.dequantise import dequantise, inspect
from preflab.errors import BadInput, shown
from preflab.hub import ask_hub_once, model_in_cache
from preflab.paths import MODELS, project_root
from preflab.pretrained import names
from preflab.progress import note
from preflab.safety import check_folder
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
    path = project_root() / os.path.expanduser(name)  # ~ stays as it is where there is no such user
    if os.path.isdir(path):
        return Weights(path)
    if os.path.isfile(path):
        return Dequantised(Weights(path))
    if name in {f"{MODELS}/{known}" for known in names()}:
        raise BadInput(f"base.model={name!r}: no such folder, run: preflab model {Path(name).name}")
    if name.startswith((".", "/", "~")) or name.endswith(".gguf"):
        raise BadInput(f"base.model={name!r}: no such folder or file at {path}, expected one, or a name on the hub")
    return None


def check_model(
    name: str, revision: str | None, here_only: bool = False, weights: bool = True, plain: bool = False
) -> None:
    """Raises BadInput, before hours of work, for a name of `base.model` that leads to no model.

    That is a path that is not there, a folder or a GGUF file that holds no sound model and, unless `here_only`, a name
    on a hub that is out of reach, of which the hub's cache has no copy. `weights` and `plain`: see `check_folder`.
    """
    given = given_model(name)
    if isinstance(given, Weights):
        if not (given.path / "config.json").is_file():
            raise BadInput(f"base.model={shown(name)}: no config.json in {given.path}, expected a model's folder")
        check_folder(given.path, weights, plain)
    if isinstance(given, Dequantised):
        inspect(given.weights.path)
    if given is None and not here_only and not ask_hub_once() and not model_in_cache(name, revision):
        hint = "expected a folder, a GGUF file, a network, or a copy in the hub's cache"
        raise BadInput(f"base.model={shown(name)}: no such folder, and the hub cannot be reached; {hint}")
