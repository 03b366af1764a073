"""Lines of progress: from any process of a run, to whoever shows them."""

from collections.abc import Callable

_sinks: list[Callable[[str], None]] = []


def show_with(sink: Callable[[str], None]) -> None:
    """From now on this process hands its lines to `sink`."""
    _sinks[:] = [sink]


def note(line: str) -> None:
    """Hand on a line; nobody may be listening."""
    for sink in _sinks:
        sink(line)
