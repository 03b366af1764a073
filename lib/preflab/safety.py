"""Whether a model's folder can be used: told from it before anything trains, and without any code of it.

Others made it. transformers reads safetensors alone and runs nothing of a folder. But it gives a tensor that is missing
random values, follows an index out of the folder, and ends in a traceback at a file that is malformed.
"""

import contextlib
import io
import resource
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase

from preflab.errors import BadInput, first_line, shown
from preflab.parsing import read_json
from preflab.tokenizers import load_tokenizer

WEIGHTS, INDEX, ADAPTER = "model.safetensors", "model.safetensors.index.json", "adapter_config.json"
LARGEST_TEXT = 2**27  # bytes of a file beside the weights; tokenizers of 260,000 tokens have a quarter of it
MOST_LAYERS = 1000
TEMPLATE_SECONDS, TEMPLATE_BYTES = 5, 2**30  # that a chat template may take for a short dialogue
LARGEST_READ = 2**31  # bytes of a file that is read through for NaN; a larger one shows them in its first log-probs
PIECE = 2**24  # values that are looked at together
DIALOGUE = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def check_folder(folder: Path, weights: bool = True, plain: bool = False) -> None:
    """Raises BadInput, which names file and fault, for a folder that is no whole causal language model.

    Without `weights` it needs none: the shape and the tokenizer count. `plain`: as `load_tokenizer` takes it.
    """
    if (folder / ADAPTER).exists():
        raise BadInput(f"{folder}: holds an adapter ({ADAPTER}); expected a whole model, so merge it into its base")
    for file in sorted(folder.iterdir()):
        if file.suffix in (".json", ".jinja", ".txt", ".model") and (size := file.stat().st_size) > LARGEST_TEXT:
            raise BadInput(f"{file}: {size / 1e6:.0f} MB; expected at most {LARGEST_TEXT / 1e6:.0f} MB")
    config = _config(folder)
    if weights:
        files = [_opened(file) for file in _weight_files(folder)]
        _check_complete(folder)
        for file in files:
            if file.stat().st_size <= LARGEST_READ:
                _check_finite(file)
    _check_tokenizer(folder, plain, config.get_text_config().vocab_size)


def _config(folder: Path) -> transformers.PreTrainedConfig:
    with _told_as(folder / "config.json", "a model's shape"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        layers, vocabulary = (getattr(config.get_text_config(), n) for n in ("num_hidden_layers", "vocab_size"))
    for name, value, most in (("layers", layers, MOST_LAYERS), ("tokens", vocabulary, LARGEST_TEXT)):
        if not 0 < value <= most:
            raise BadInput(f"{folder / 'config.json'}: {shown(value)} {name}; expected 1 to {most}")
    return config


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder. An index names files that lie beside it, and no others."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    index = folder / INDEX
    if not index.is_file():
        raise BadInput(
            f"{folder}: no {WEIGHTS}; expected safetensors, because pickle files may run code and are not read"
        )
    found = read_json(index)
    named = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(named, dict) or not named or not all(isinstance(name, str) for name in named.values()):
        raise BadInput(f"{index}: no 'weight_map'; expected the file of every tensor")
    for name in sorted(set(named.values())):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise BadInput(f"{index}: names {shown(name)}; expected a safetensors file in the same folder")
        if not (folder / name).is_file():
            raise BadInput(f"{index}: names {shown(name)}, which is not there; expected every file that it names")
    return [folder / name for name in sorted(set(named.values()))]


def _opened(file: Path) -> Path:
    """The file, if its header is sound: safetensors reads it whole, and compares it with the size of the file."""
    try:
        with safe_open(file, "pt"):
            return file
    except (SafetensorError, OSError) as error:
        raise BadInput(f"{file}: not readable as safetensors: {first_line(error)}") from None


def _check_complete(folder: Path) -> None:
    """Raises BadInput if tensors are missing or have another shape than the config says. No weight is kept for that."""
    how = {"trust_remote_code": False, "local_files_only": True, "use_safetensors": True, "device_map": "meta"}
    with _told_as(folder, "weights that fit config.json"), _hushed():
        told = {"output_loading_info": True, "ignore_mismatched_sizes": True}
        loading = AutoModelForCausalLM.from_pretrained(folder, **how, **told)[1]
    faults = {"missing_keys": "are missing", "mismatched_keys": "have not the shape of config.json"}
    for kind, fault in faults.items():
        if found := sorted(key if isinstance(key, str) else key[0] for key in loading[kind]):
            raise BadInput(f"{folder}: {len(found)} tensors {fault} ({found[0]}, ...); expected a whole model")


def _check_finite(file: Path) -> None:
    with safe_open(file, "pt") as opened:
        for name in opened.offset_keys():
            for piece in opened.get_tensor(name).flatten().split(PIECE):
                if not torch.isfinite(piece if piece.itemsize > 1 else piece.float()).all():
                    raise BadInput(f"{file}: tensor {shown(name)} has NaN or infinity; expected numbers")


def _check_tokenizer(folder: Path, plain: bool, vocabulary: int) -> None:
    with _told_as(folder, "a tokenizer"), _hushed():
        tokenizer = load_tokenizer(str(folder), plain=plain)
        last = max(tokenizer.get_vocab().values())
    if last >= vocabulary:
        raise BadInput(
            f"{folder}: the tokenizer has token {last}; expected at most {vocabulary - 1}, as in config.json"
        )
    with _told_as(folder, "a chat template for prompt and answer"):
        _check_template(tokenizer)


def _check_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """A template runs in Jinja's sandbox: it reaches no file and nothing of Python. It may still never end."""
    with _at_most(TEMPLATE_SECONDS, TEMPLATE_BYTES):
        tokenizer.apply_chat_template(DIALOGUE, tokenize=False)


@contextlib.contextmanager
def _told_as(where: Path, expected: str) -> Iterator[None]:
    """Whatever a library raises at a malformed file becomes one BadInput; there is no list of what they raise."""
    try:
        yield
    except Exception as error:
        said = first_line(error)
        if "custom code" in said:
            raise BadInput(f"{where}: asks for code of its own, and none is run; expected {expected}") from None
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"{where}: {type(error).__name__}: {said}; expected {expected}") from None


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Without the bars and reports of transformers."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        transformers.logging.set_verbosity(before)


@contextlib.contextmanager
def _at_most(seconds: int, memory: int) -> Iterator[None]:
    """Raises TimeoutError after so many seconds, MemoryError beyond so many more bytes.

    The time is kept in a main thread alone, the memory on Linux alone.
    """

    def late(*_) -> None:
        raise TimeoutError(f"not done after {seconds} s")

    limits, status = resource.getrlimit(resource.RLIMIT_AS), Path("/proc/self/statm")
    here = threading.current_thread() is threading.main_thread()
    old = signal.signal(signal.SIGALRM, late) if here else None
    try:
        if here:
            signal.alarm(seconds)
        if status.exists():
            used = int(status.read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + memory, limits[1]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        if here:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, old)
