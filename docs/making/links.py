"""Links of the repository's texts as links of the site. Paths are those of the repository, with /."""

import re
from pathlib import PurePosixPath
from posixpath import normpath, relpath

SOURCE = PurePosixPath("book/source")  # what Sphinx reads; everything in it is made
TEXTS = ("README", "RESULTS", "REVIEWING", "CHANGELOG", "CONTRIBUTING")
PAGES = {f"{name}.md": f"{name.lower()}.md" for name in TEXTS}
PAGES |= {"CLAIMS.md": "ledger.md"}  # claims/ has a page for each claim
LIBRARY = "lib/preflab"

LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)\s#]+)(?=[)#])")  # the target in [words](target) of a file of ours


def page_of(path: str) -> str | None:
    """The page that a file or a folder of the repository has in the site; None if it has none."""
    if path in PAGES:
        return PAGES[path]
    if path.startswith("docs/") and path.endswith(".md"):
        return path.removeprefix("docs/")
    if path.startswith("notebooks/") and path.endswith(".ipynb"):
        return path
    if path == LIBRARY:
        return "api/index.md"
    if path.startswith(f"{LIBRARY}/") and PurePosixPath(path).suffix in ("", ".py"):
        return f"api/{dotted(path)}.rst"
    return None


def dotted(path: str) -> str:
    """lib/preflab/claims/dynamics.py -> preflab.claims.dynamics; a package's folder and its __init__.py are one."""
    return path.removeprefix("lib/").removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def to(path: str, page: str) -> str:
    """What a page must write to link to a file of the repository: its page, or else the file itself."""
    there = page_of(path)
    target = SOURCE / there if there else PurePosixPath(path)
    return relpath(target, (SOURCE / page).parent)


def rewritten(text: str, path: str, page: str) -> str:
    """A text of the repository with the links that its page in the site needs."""
    folder = PurePosixPath(path).parent
    return LINK.sub(lambda found: to(normpath(folder / found[1]), page), text)
