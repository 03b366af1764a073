"""Lines of progress: from any process of a run, to whoever shows them."""

import time
from collections.abc import Callable

_sinks: list[Callable[[str], None]] = []


def show_with(sink: Callable[[str], None]) -> None:
    """From now on this process hands its lines to `sink`."""
    _sinks[:] = [sink]


def time_left(seconds: float) -> str:
    """In words."""
    return f"about {seconds / 60:.0f} min left" if seconds > 90 else f"about {seconds:.0f} s left"


class Pace:
    """Which steps of a long loop are worth a line: one in every `seconds`. A new loop begins where steps go back."""

    def __init__(self, seconds: float = 15):
        self.seconds, self.seen, self.first, self.began, self.told = seconds, 0, 0, 0.0, 0.0

    def left(self, step: int, steps: int) -> str:
        """The time left after `step` of `steps` if a line is due, else ""; steps so far tell how long others take."""
        now = time.monotonic()
        if step <= self.seen or not self.began:
            self.first, self.began, self.told = step, now, now
        self.seen = step
        if now - self.told < self.seconds or step == self.first:
            return ""
        self.told = now
        return time_left((now - self.began) / (step - self.first) * (steps - step))


def note(line: str) -> None:
    """Hand on a line; nobody may be listening."""
    for sink in _sinks:
        sink(line)
