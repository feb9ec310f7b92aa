"""Where the EnCodec weights come from: a file, a folder, the hub caches, a download. Reading runs no code from them."""

from __future__ import annotations

import contextlib
import hashlib
import pickle
import queue
import threading
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from ..storage.durable import replacing
from .interface import CodecUnavailable

TOTAL_PATIENCE = 60
"""A download is given up after this many times its `timeout`, whether or not bytes still come."""


@dataclass(frozen=True)
class Source:
    """Where one codec's published weights are.

    `file_names`: what they are called in a folder, in the order of preference; `hub`: (repository, file name) pairs in
    the Hugging Face cache; `url` is fetched into torch's hub folder as `saved_as`, where its sha256 has to begin with
    `sha256` (empty: not known).
    """

    file_names: tuple[str, ...]
    hub: tuple[tuple[str, str], ...]
    url: str
    saved_as: str
    sha256: str = ""


def download_folder() -> Path:
    """torch's own folder for downloaded checkpoints (under TORCH_HOME)."""
    return Path(torch.hub.get_dir(), "checkpoints")


def locate(name: str, source: Source, weights: str | Path | None, fetch: bool, timeout: float) -> Path:
    """The file with the weights of codec `name`; raises `CodecUnavailable` saying what was looked for, and where."""
    if weights is not None:
        path = Path(weights)
        if path.is_dir():
            for candidate in source.file_names:
                if (path / candidate).is_file():
                    return path / candidate
            raise CodecUnavailable(
                f"{name}: the folder {str(path)!r} has none of {', '.join(source.file_names)}; "
                f"one of them is at {source.url}"
            )
        if not path.is_file():
            raise CodecUnavailable(f"{name}: no weights at {str(path)!r}; they are published at {source.url}")
        return path
    if (local := _cached(source)) is not None:
        return local
    failure = "fetching was not allowed"
    if fetch:
        try:
            return _download(source, timeout)
        except (OSError, ValueError) as error:  # urllib's and socket's errors are OSErrors
            failure = f"fetching them failed ({error})"
    repositories = " or ".join(f"{file} of {repository}" for repository, file in source.hub)
    raise CodecUnavailable(
        f"{name}: its weights are not here, and {failure}. Fetch {source.url} and put it to "
        f"{str(download_folder() / source.saved_as)!r}, or have {repositories} in the Hugging Face cache "
        f"(with huggingface_hub installed), or name a local file or folder. The mel codec needs no weights."
    )


def _cached(source: Source) -> Path | None:
    path = download_folder() / source.saved_as
    if path.is_file():
        return path
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    for repository, file_name in source.hub:
        found = try_to_load_from_cache(repository, file_name)
        if isinstance(found, str) and Path(found).is_file():
            return Path(found)
    return None


def _download(source: Source, timeout: float) -> Path:
    """Fetch `source.url`; gives up `timeout` seconds after the last byte, or at `TOTAL_PATIENCE` times that.

    The transfer runs in a thread of its own, since neither a name look-up nor a slow server can be interrupted.
    """
    if not timeout > 0:
        raise ValueError(f"timeout must be positive, got {timeout}")
    path = download_folder() / source.saved_as
    path.parent.mkdir(parents=True, exist_ok=True)
    stop = threading.Event()
    blocks: queue.Queue[bytes | int | BaseException] = queue.Queue(maxsize=16)

    def put(item: bytes | int | BaseException) -> None:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                blocks.put(item, timeout=0.2)
                break

    def transfer() -> None:
        try:
            with urllib.request.urlopen(source.url, timeout=timeout) as response:
                put(int(response.headers.get("Content-Length") or 0))
                while not stop.is_set() and (block := response.read(1 << 20)):
                    put(block)
            put(b"")
        except BaseException as error:
            put(error)

    threading.Thread(target=transfer, daemon=True, name="fetch weights").start()
    begun, expected, sha = time.monotonic(), 0, hashlib.sha256()
    try:
        with replacing(path) as temporary:
            with open(temporary, "wb") as file, tqdm(desc=path.name, unit="B", unit_scale=True, leave=False) as bar:
                while True:
                    item = blocks.get(timeout=timeout)
                    if isinstance(item, BaseException):
                        raise OSError(str(item) or type(item).__name__) from item
                    if isinstance(item, int):
                        expected = bar.total = item
                        continue
                    if not item:
                        break
                    file.write(item)
                    sha.update(item)
                    bar.update(len(item))
                    if time.monotonic() - begun > TOTAL_PATIENCE * timeout:
                        raise OSError(f"not done after {TOTAL_PATIENCE * timeout:.0f} s")
            size = temporary.stat().st_size
            if expected and size != expected:
                raise OSError(f"{size} of {expected} bytes came")
            if not sha.hexdigest().startswith(source.sha256):
                raise OSError(f"the sha256 does not begin with {source.sha256}")
    except queue.Empty:
        raise OSError(f"no answer for {timeout:.0f} s") from None
    finally:
        stop.set()
    return path


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file or of a PyTorch checkpoint, which is read with `weights_only`.

    What audiocraft exports keeps them under "best_state" (and there, in a training checkpoint, under "model").
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CodecUnavailable(f"{str(path)!r}: no file of weights, or one with more than tensors in it") from error
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise CodecUnavailable(f"{str(path)!r}: cannot be read as weights ({error})") from error
    if isinstance(state, Mapping) and "pretrained" in state:
        raise CodecUnavailable(f"{str(path)!r}: only refers to {state['pretrained']!r}, which holds the weights")
    for wrapper in ("best_state", "state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping):
        raise CodecUnavailable(f"{str(path)!r}: holds a {type(state).__name__}, no weights by name")
    return {key: value for key, value in state.items() if isinstance(value, Tensor)}
