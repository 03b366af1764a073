"""Stage the site: python docs/making/stage.py writes book/source, which Sphinx then builds."""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "docs"), str(ROOT / "lib")]

from making import api, claims
from making.links import PAGES, SOURCE, dotted, page_of, rewritten


def notebook(path: str) -> str:
    """A committed notebook with the links that its page needs, and the words of its pictures where MyST-NB looks."""
    content = json.loads((ROOT / path).read_text())
    for cell in content["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = rewritten("".join(cell["source"]), path, path)
        for shown in (output.get("metadata", {}).get("image/png", {}) for output in cell.get("outputs", [])):
            if "alt" in shown:
                cell["metadata"]["mystnb"] = {"image": {"alt": shown["alt"]}}
    return json.dumps(content)


def text(path: str) -> str:
    """A Markdown file of the repository with the links that its page needs."""
    return rewritten((ROOT / path).read_text(), path, page_of(path))


def pages() -> dict[str, str]:
    """Every page of the site, by its path in the source."""
    own = [path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")]
    made = {page_of(path): text(path) for path in [*PAGES, *own]}
    for path in sorted((ROOT / "notebooks").rglob("[0-9]*.ipynb")):
        name = path.relative_to(ROOT).as_posix()
        made[name] = notebook(name)
    library = api.modules(ROOT)
    rooms = api.rooms((ROOT / "README.md").read_text(), library)
    made |= {"api/index.md": api.index_page(rooms)} | {room.page: api.room_page(room, ROOT) for room in rooms}
    made |= {f"api/{dotted(module)}.rst": api.module_page(module) for module in library}
    found = claims.judged()
    made["claims/index.md"] = claims.index_page(found)
    return made | {claims.page_name(claim): claims.claim_page(claim, runs, ROOT) for claim, runs in found.items()}


def write(made: dict[str, str], folder: Path) -> None:
    """Write what has changed, so that Sphinx builds no page again without need; what is gone, goes."""
    for old in [path for path in folder.rglob("*") if path.is_file()]:
        if old.relative_to(folder).as_posix() not in made:
            old.unlink()
    for name, content in made.items():
        page = folder / name
        page.parent.mkdir(parents=True, exist_ok=True)
        if not page.exists() or page.read_text() != content:
            page.write_text(content)


if __name__ == "__main__":
    write(pages(), ROOT / SOURCE)
