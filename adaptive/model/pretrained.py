"""Weights from a folder, a run or the Hugging Face hub, and back to them: methods that the agent offers.

What they do is in `adaptive_window.hub`, which knows of files and codecs as the modules here do not; it is imported
when one of them is called.
"""

from __future__ import annotations

from os import PathLike
from typing import Any, Self


class Pretrained:
    """`arguments`: those that the agent was built with. `about`: what is known of its weights beside their values,
    `codec`, `clip_frames` and `license`, as `from_pretrained` found and `save_pretrained` writes it; empty for an agent
    that was built by hand.
    """

    arguments: dict[str, Any]
    about: dict[str, Any]

    @classmethod
    def from_pretrained(
        cls,
        name: str | PathLike[str],
        *,
        backend: str = "auto",
        revision: str | None = None,
        cache_dir: str | PathLike[str] | None = None,
        token: str | bool | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
    ) -> Self:
        """The agent that somebody trained, with its weights, on the CPU and in eval mode.

        Args:
            name: one of
                `"default"`, the weights that the package brings;
                a folder with `config.json` and `model.safetensors`, as `save_pretrained` writes it;
                a training run's folder, for its best checkpoint, or a checkpoint's file;
                a repository of the Hugging Face hub, `"owner/name"`: extra `[hub]`. With `HF_HUB_OFFLINE=1` it is taken
                from the cache. A folder of that name in the working directory goes first.
            backend: of the window kernels, as in the constructor.
            revision: branch, tag or commit of a repository.
            cache_dir, token, force_download, local_files_only: as `huggingface_hub.snapshot_download`.

        Raises:
            ValueError: what is there is no agent's, or not whole: no configuration or one that is no JSON, with unknown
                or missing fields, or of another architecture; weights that are damaged, pickled, not finite or that do
                not fit in names or shapes. The message says what was got and what is wanted.
            ImportError: a repository, without huggingface_hub.
            OSError: what huggingface_hub raises where a repository does not exist or cannot be reached.
        """
        from ..hub.pretrained import load

        fetching = {
            "revision": revision,
            "cache_dir": cache_dir,
            "token": token,
            "force_download": force_download,
            "local_files_only": local_files_only,
        }
        return load(cls, name, backend, fetching)

    def save_pretrained(
        self,
        folder: str | PathLike[str],
        *,
        codec: Any = None,
        clip_frames: int | None = None,
        license: str | None = None,
        overwrite: bool = False,
    ) -> None:
        """Writes `config.json`, `model.safetensors` and a model card, `README.md`, into a folder, which is made.

        Args:
            codec: `audio.codec.Codec` whose latents the agent was trained on (default: as `about` says).
            clip_frames: frames of the clips that it was trained on (likewise).
            license: of the weights, an SPDX identifier as the hub has it, such as "mit" (likewise).
            overwrite: replace configuration and weights also where adaptive-window did not write them. A card that
                somebody wrote or edited stays.

        Raises:
            ValueError: weights that are not finite or are no longer those of a plain agent (adapters, say, which have
                to be merged first); files there that are somebody else's.
        """
        from ..hub.pretrained import save

        save(self, folder, {"codec": codec, "clip_frames": clip_frames, "license": license}, overwrite)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        codec: Any = None,
        clip_frames: int | None = None,
        license: str | None = None,
        **options: Any,
    ) -> str:
        """Writes the files of `save_pretrained` into a repository of the hub, which is made: extra `[hub]`.

        Args:
            repo_id: `"owner/name"`.
            codec, clip_frames, license: as `save_pretrained`.
            options: as `huggingface_hub.PyTorchModelHubMixin.push_to_hub`: `commit_message`, `private`, `token`,
                `branch`, `create_pr`, ...

        Returns:
            The address of the commit.

        Raises:
            ValueError: as `save_pretrained`.
            ImportError: without huggingface_hub.
            OSError: what huggingface_hub raises where the hub refuses or cannot be reached.
        """
        from ..hub.pretrained import push

        return push(self, repo_id, {"codec": codec, "clip_frames": clip_frames, "license": license}, options)
