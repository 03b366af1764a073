"""Libraries that say nothing, and send nothing: a notebook shows what it says itself."""

import os
import warnings

import datasets
import transformers


def quiet() -> None:
    """No progress bars, advisory warnings and errands of the libraries."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning)
    os.environ["TQDM_DISABLE"] = "1"  # TRL's
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker")  # it clears up after a killed run, and says so
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # else tokenizers warn of every process that is started
    os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"  # else a repo of pickles is sent to a converter on the hub
    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
