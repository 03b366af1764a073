"""Pages of the library, room by room, in the README's reading order."""

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from making.links import LIBRARY, dotted

ROW = re.compile(r"^\| (\[.*?\)) \| (.+?) \|$", re.M)  # of the README's table of rooms
LINKED = re.compile(r"\[([^\]]+)\]\((lib/preflab[^)]*)\)")
REST = ("and besides", "what these rooms share")


@dataclass(frozen=True)
class Room:
    title: str
    holds: str  # in the README's words
    modules: tuple[str, ...]  # paths of the repository

    @property
    def page(self) -> str:
        return "api/" + re.sub(r"\W+", "-", self.title).strip("-") + ".md"


def rooms(readme: str, modules: Sequence[str]) -> list[Room]:
    """The rooms. A module belongs to the row that names it, or the nearest folder above it; else to the last room."""
    rows = [(LINKED.findall(first), holds) for first, holds in ROW.findall(readme)]
    named = [place for links, _ in rows for _, place in links]
    home = {module: max((n for n in named if _within(module, n)), key=len, default="") for module in modules}
    found = [
        Room(", ".join(name.rstrip("/") for name, _ in links), holds, _of([place for _, place in links], home))
        for links, holds in rows
        if links
    ]
    return [*found, Room(*REST, _of([""], home))]


def _within(module: str, place: str) -> bool:
    return module == place or module.startswith(f"{place}/")


def _of(places: Sequence[str], home: dict[str, str]) -> tuple[str, ...]:
    return tuple(module for place in places for module, at in home.items() if at == place)


def modules(root: Path) -> list[str]:
    """Every module of the library, a package before what is in it."""
    found = [path.relative_to(root).as_posix() for path in (root / LIBRARY).rglob("*.py")]
    return sorted(found, key=lambda path: path.removesuffix("__init__.py").removesuffix(".py").split("/"))


def first_sentence(source: str) -> str:
    """What a module says of itself in its first line."""
    return (ast.get_docstring(ast.parse(source)) or "").split("\n")[0]


def room_page(room: Room, root: Path) -> str:
    """A table of the room's modules, each with a link and its first line."""
    said = {module: as_cell(first_sentence((root / module).read_text())) for module in room.modules}
    rows = [f"| [{short(module)}]({dotted(module)}.rst) | {text} |" for module, text in said.items()]
    tree = [f"{short(m)} <{dotted(m)}>" for m in room.modules]
    lines = [f"# {room.title}", f"Here is {room.holds}.", "| module | what it is |\n|---|---|\n" + "\n".join(rows)]
    return "\n\n".join([*lines, toctree(tree)])


def short(module: str) -> str:
    """preflab.claims.dynamics is `claims.dynamics` among its neighbours."""
    return dotted(module).removeprefix("preflab.")


def as_cell(text: str) -> str:
    """A text that is safe in a cell of a Markdown table."""
    return re.sub(r"([|*_<\[])", r"\\\1", text)


def toctree(entries: Sequence[str], caption: str = "") -> str:
    """A hidden table of contents: it makes the sidebar."""
    options = [":hidden:", f":caption: {caption}"] if caption else [":hidden:"]
    return "\n".join(["```{toctree}", *options, "", *entries, "```"])


def index_page(found: Sequence[Room]) -> str:
    """All rooms in reading order."""
    names = [room.page.removeprefix("api/") for room in found]
    rows = [f"| [{room.title}]({name}) | {room.holds} |" for room, name in zip(found, names, strict=True)]
    return "\n\n".join(
        [
            "# The library",
            "Read the rooms from top to bottom. A page has one module's docstrings, and *[source]* shows its code.",
            "| room | what is there |\n|---|---|\n" + "\n".join(rows),
            toctree([name.removesuffix(".md") for name in names]),
        ]
    )


def module_page(module: str) -> str:
    """A page that autodoc fills."""
    name = dotted(module)
    options = ["   :members:", "   :ignore-module-all:", "   :show-inheritance:"]
    return "\n".join([name, "=" * len(name), "", f".. automodule:: {name}", *options, ""])
