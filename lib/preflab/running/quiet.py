"""Libraries that say nothing: a notebook shows what it says itself."""

import os
import warnings

import datasets
import transformers


def quiet() -> None:
    """No progress bars and advisory warnings of the libraries: a notebook shows what it says."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning)
    os.environ["TQDM_DISABLE"] = "1"  # TRL's
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker")  # it clears up after a killed run, and says so
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # else tokenizers warn of every process that is started
    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
