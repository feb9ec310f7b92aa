"""An agent as huggingface_hub's mixin wants it: it makes the repository, writes our files and uploads them.

The agent itself does not inherit from the mixin, so that it needs no package but torch. This is what it is wrapped in
on its way to the hub; nothing imports this module before that.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import PyTorchModelHubMixin

from .card import LIBRARY


class Publication(PyTorchModelHubMixin, library_name=LIBRARY):
    """The files of an agent by name (`contents.contents`), on their way to a repository."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = files

    def _save_pretrained(self, save_directory: Path) -> None:
        """All files, the card too, which the mixin otherwise writes from a template of its own."""
        for name, content in self.files.items():
            (save_directory / name).write_bytes(content)
