"""Repositories of the hub, without a network: its cache, what is asked of huggingface_hub, and doing without it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import hub_mixin

from adaptive_window import AdaptiveWindowCreativeAgent

SIZES = {"kernel_size": 3, "component_dim": 4, "composer_heads": 2, "composer_layers": 1, "composer_dim": 16}


@pytest.fixture
def agent():
    return AdaptiveWindowCreativeAgent(8, 2, window_frames=24, **SIZES).eval()


def cached(agent, cache: Path, repository: str, *, branch: str = "main") -> str:
    """The repository as huggingface_hub keeps it (https://huggingface.co/docs/huggingface_hub/guides/manage-cache)."""
    commit = "0123456789abcdef" * 2 + "01234567"
    folder = cache / f"models--{repository.replace('/', '--')}"
    agent.save_pretrained(folder / "snapshots" / commit)
    (folder / "refs").mkdir()
    (folder / "refs" / branch).write_text(commit)
    return commit


OFFLINE = """
import sys, torch
from adaptive_window import AdaptiveWindowCreativeAgent
agent = AdaptiveWindowCreativeAgent.from_pretrained("me/agent", cache_dir=sys.argv[1])
print(sum(float(p.detach().double().sum()) for p in agent.parameters()))
try:
    AdaptiveWindowCreativeAgent.from_pretrained("me/other", cache_dir=sys.argv[1])
except OSError as error:
    print(type(error).__name__)
"""


def test_offline_the_cache_serves(agent, tmp_path):
    cached(agent, tmp_path, "me/agent")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", OFFLINE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    total, error = done.stdout.splitlines()
    assert float(total) == sum(float(p.detach().double().sum()) for p in agent.parameters())
    assert error == "LocalEntryNotFoundError"


def test_a_revision_in_the_cache(agent, tmp_path):
    commit = cached(agent, tmp_path, "me/agent", branch="second")
    for revision in ("second", commit):
        read = AdaptiveWindowCreativeAgent.from_pretrained(
            "me/agent", revision=revision, cache_dir=tmp_path, local_files_only=True
        )
        assert all(map(torch.equal, read.state_dict().values(), agent.state_dict().values()))


def test_what_is_asked_of_the_hub(agent, tmp_path, monkeypatch):
    asked = {}

    def download(repo_id, **options):
        asked.update(options, repo_id=repo_id)
        return str(tmp_path)

    agent.save_pretrained(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    chosen = {"revision": "v2", "cache_dir": "/c", "token": "t", "force_download": True, "local_files_only": False}
    AdaptiveWindowCreativeAgent.from_pretrained("me/agent", **chosen)
    assert asked.pop("allow_patterns") == ["config.json", "model.safetensors"]  # no pickle is even fetched
    assert asked.pop("library_name") == "adaptive-window"
    assert asked.pop("library_version")
    assert asked == {**chosen, "repo_id": "me/agent"}


def test_a_repository_of_another_model_is_refused(agent, tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    with pytest.raises(ValueError, match="architecture must be AdaptiveWindowCreativeAgent, got 'bert'"):
        AdaptiveWindowCreativeAgent.from_pretrained("google/bert")


class Api:
    """What the mixin calls of `HfApi`, and what a repository then holds."""

    said: dict

    def __init__(self, token=None):
        type(self).said = {"token": token}

    def create_repo(self, repo_id, **options):
        self.said["create"] = {"repo_id": repo_id, **options}
        return type("Url", (), {"repo_id": repo_id})()

    def upload_folder(self, *, folder_path, **options):
        self.said["files"] = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
        self.said["upload"] = options
        return "https://huggingface.co/me/agent/commit/1"


def test_publishing(agent, tmp_path, monkeypatch):
    monkeypatch.setattr(hub_mixin, "HfApi", Api)
    chosen = {"private": True, "token": "t", "branch": "next", "commit_message": "better"}
    url = agent.push_to_hub("me/agent", license="mit", clip_frames=60, **chosen)
    assert url == "https://huggingface.co/me/agent/commit/1"
    assert Api.said["token"] == "t"
    assert Api.said["create"]["repo_id"] == "me/agent"
    assert Api.said["create"]["private"] is True
    assert (Api.said["upload"]["revision"], Api.said["upload"]["commit_message"]) == ("next", "better")
    assert Api.said["files"].keys() == {"README.md", "config.json", "model.safetensors"}
    for name, content in Api.said["files"].items():
        (tmp_path / name).write_bytes(content)
    assert 'license: "mit"' in (tmp_path / "README.md").read_text()
    read = AdaptiveWindowCreativeAgent.from_pretrained(tmp_path)
    assert read.about["clip_frames"] == 60
    assert all(map(torch.equal, read.state_dict().values(), agent.state_dict().values()))


WITHOUT = """
import sys
sys.modules["huggingface_hub"] = None  # an import of it fails as if it were not there
from adaptive_window import AdaptiveWindowCreativeAgent
sizes = {"component_dim": 4, "composer_heads": 2, "composer_layers": 1, "composer_dim": 16}
agent = AdaptiveWindowCreativeAgent(8, 2, window_frames=24, **sizes)
agent.save_pretrained(sys.argv[1])
AdaptiveWindowCreativeAgent.from_pretrained(sys.argv[1])
AdaptiveWindowCreativeAgent.from_pretrained("default")
for call in (AdaptiveWindowCreativeAgent.from_pretrained, agent.push_to_hub):
    try:
        call("me/agent")
    except ImportError as error:
        print(error)
"""


def test_without_huggingface_hub(tmp_path):
    command = [sys.executable, "-c", WITHOUT, str(tmp_path / "agent")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert len(said) == 2
    assert said[0].startswith("there is no folder 'me/agent', and a repository of the hub needs huggingface_hub")
    assert said[1].startswith("push_to_hub('me/agent') needs huggingface_hub")
    assert all('pip install "adaptive-window[hub]"' in line for line in said)
