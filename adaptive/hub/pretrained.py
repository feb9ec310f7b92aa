"""What the agent's `from_pretrained`, `save_pretrained` and `push_to_hub` do (`model.pretrained` documents them)."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from .. import __version__
from ..errors import AdaptiveWindowError
from ..model.agent import AdaptiveWindowCreativeAgent
from ..model.pretrained import Pretrained
from ..storage import outputs
from ..training.checkpoint import CheckpointError, load_checkpoint
from ..training.initial import DEFAULT, checkpoint_at
from . import contents
from .card import LIBRARY

AgentT = TypeVar("AgentT", bound=Pretrained)

DEFAULT_LICENSE = "mit"  # of the package, whose weights these are
_REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")


class HubUnavailable(AdaptiveWindowError, ImportError):
    """huggingface_hub is needed and not installed; the message names the extra."""


def load(kind: type[AgentT], name: str | os.PathLike[str], backend: str, fetching: Mapping[str, Any]) -> AgentT:
    """`Pretrained.from_pretrained`; `fetching`: further arguments of `huggingface_hub.snapshot_download`."""
    if not isinstance(name, str | os.PathLike):
        raise TypeError(f"name must be a str or a path, got {type(name).__name__}")
    text = os.fspath(name)
    path = Path(text).expanduser()
    built = cast(type[AdaptiveWindowCreativeAgent], kind)
    if text == DEFAULT:
        path = checkpoint_at(None)
        checkpoint = load_checkpoint(path)
        checkpoint.info["license"] = DEFAULT_LICENSE
    elif path.exists():
        checkpoint = contents.read_any(path)
    elif _REPOSITORY.fullmatch(text):
        path = _fetched(text, fetching)
        checkpoint = contents.read(path)
    else:
        raise CheckpointError(
            f"name must be {DEFAULT!r}, a folder, a checkpoint's file or a repository of the hub, 'owner/name'; "
            f"there is nothing at {text!r}"
        )
    return cast(AgentT, contents.build(checkpoint, path, built, backend).eval())


def save(agent: Pretrained, folder: str | os.PathLike[str], given: Mapping[str, Any], overwrite: bool) -> None:
    """`Pretrained.save_pretrained`; `given`: codec, clip_frames and license."""
    files = contents.contents(cast(AdaptiveWindowCreativeAgent, agent), given)
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    paths = {place / name: content for name, content in files.items()}
    card = place / contents.CARD
    if card.exists() and not outputs.wrote(card):
        del paths[card]
    outputs.claim(*paths, overwrite=overwrite, advice="name another folder, or set overwrite=True")
    for path, content in paths.items():
        with outputs.writing(path, overwrite=overwrite) as temporary:
            temporary.write_bytes(content)


def push(agent: Pretrained, repo_id: str, given: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    """`Pretrained.push_to_hub`; `options`: the mixin's."""
    files = contents.contents(cast(AdaptiveWindowCreativeAgent, agent), given)
    try:
        from .mixin import Publication
    except ModuleNotFoundError as error:
        raise _unavailable(f"push_to_hub({repo_id!r})", error) from error
    return Publication(files).push_to_hub(repo_id, **options)


def _fetched(repository: str, fetching: Mapping[str, Any]) -> Path:
    """The repository's files in the hub's cache, of one commit."""
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError as error:
        raise _unavailable(f"there is no folder {repository!r}, and a repository of the hub", error) from error
    names = [contents.CONFIG, contents.WEIGHTS]
    return Path(
        snapshot_download(
            repository, allow_patterns=names, library_name=LIBRARY, library_version=__version__, **fetching
        )
    )


def _unavailable(what: str, error: ModuleNotFoundError) -> HubUnavailable:
    return HubUnavailable(f'{what} needs huggingface_hub ({error}): pip install "adaptive-window[hub]"')
