"""Check a built site: python docs/making/check.py FOLDER names links that lead nowhere and scripts from elsewhere."""

import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


@dataclass
class Page(HTMLParser):
    """What a page links to, what it loads, and which places of it can be linked to."""

    links: set[str] = field(default_factory=set)
    loads: set[str] = field(default_factory=set)
    places: set[str] = field(default_factory=set)

    def __post_init__(self):
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        of = {name: value for name, value in attrs if value}
        self.places |= {of[name] for name in ("id", "name") if name in of}
        if tag == "a" and "href" in of:
            self.links.add(of["href"])
        if "src" in of:
            self.loads.add(of["src"])
        if tag == "link" and of.get("rel") in ("stylesheet", "icon", "preload"):
            self.loads.add(of["href"])


def read(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text())
    return page


def faults(folder: Path) -> list[str]:
    """One line for each fault of the site in a folder."""
    pages = {path.resolve(): read(path) for path in sorted(folder.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        name = path.relative_to(folder.resolve())
        found += [f"{name}: loads {url} from elsewhere" for url in sorted(page.loads) if is_elsewhere(url)]
        inside = {url for url in page.links | page.loads if not is_elsewhere(url) and not url.startswith("data:")}
        found += [f"{name}: {url} leads nowhere" for url in sorted(inside) if not leads(url, path, pages)]
    return found


def is_elsewhere(url: str) -> bool:
    return urlsplit(url).scheme in ("http", "https") or url.startswith("//")


def leads(url: str, path: Path, pages: dict[Path, Page]) -> bool:
    """Whether a link of the page at the path leads to a file and, if it names one, to a place in it."""
    parts = urlsplit(url)
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if target not in pages:
        return target.is_file()
    return not parts.fragment or unquote(parts.fragment) in pages[target].places


if __name__ == "__main__":
    wrong = faults(Path(sys.argv[1]))
    print(*wrong or ["every link leads somewhere, and nothing is loaded from elsewhere"], sep="\n")
    sys.exit(bool(wrong))
