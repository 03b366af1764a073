"""The Hugging Face hub without its patience: with no network, what is in its cache or an error at once."""

import threading

from datasets import config
from huggingface_hub import constants, get_session, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

SECONDS = 3  # that the hub has to answer
_asked_to_stay_off = constants.HF_HUB_OFFLINE or config.HF_HUB_OFFLINE  # by HF_HUB_OFFLINE=1


def ask_hub_once() -> bool:
    """Whether the hub answers. If not, its libraries are told to be offline, until the next call finds a network.

    They would try six times, for half a minute, and write two lines about each.
    """
    there = not _asked_to_stay_off and _answers()
    constants.HF_HUB_OFFLINE = config.HF_HUB_OFFLINE = not there
    return there


def model_in_cache(repo: str, revision: str | None) -> bool:
    """Whether the hub's cache on this disk has a model; it is not asked for its weights."""
    try:
        return isinstance(try_to_load_from_cache(repo, "config.json", revision=revision), str)
    except (HFValidationError, OSError, ValueError):  # no name that the hub could have
        return False


def _answers() -> bool:
    """Any answer counts. A thread, because looking up a name has no time limit of its own."""
    answers = []

    def ask() -> None:
        try:
            answers.append(get_session().head(constants.ENDPOINT, timeout=SECONDS))
        except Exception:  # no name, no route, no certificate: all the same here
            return

    constants.HF_HUB_OFFLINE = False  # its sessions refuse to ask otherwise
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(SECONDS)
    return bool(answers)
