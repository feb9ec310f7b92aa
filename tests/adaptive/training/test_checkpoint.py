import json

import pytest
import torch
from safetensors.torch import save_file

from adaptive_window.training import checkpoint as files
from adaptive_window.training import state


@pytest.fixture
def saved(tmp_path):
    checkpoint = files.Checkpoint(
        model={"a.weight": torch.arange(6.0).view(2, 3), "a.count": torch.tensor(7)},
        optimizer={"a.weight": {"exp_avg": torch.ones(2, 3), "step": torch.tensor(3.0)}},
        random=state.random_state(torch.device("cpu")),
        info={"progress": {"step": 3}, "config": {"max_steps": 5}},
    )
    path = tmp_path / "last.safetensors"
    files.save_checkpoint(path, checkpoint)
    return path, checkpoint


def test_reads_back_what_was_written(saved):
    path, written = saved
    read = files.load_checkpoint(path)
    assert read.model.keys() == written.model.keys()
    assert torch.equal(read.model["a.weight"], written.model["a.weight"])
    assert torch.equal(read.optimizer["a.weight"]["exp_avg"], torch.ones(2, 3))
    assert torch.equal(read.random["cpu"], written.random["cpu"])
    assert read.info["progress"] == {"step": 3}
    assert read.info["format"] == files.FORMAT


def test_leaves_no_temporary_file(saved):
    path, _ = saved
    assert [entry.name for entry in path.parent.iterdir()] == ["last.safetensors"]


def test_failed_save_keeps_the_previous_checkpoint(saved, monkeypatch):
    path, written = saved
    before = path.read_bytes()

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "save_file", full)
    with pytest.raises(files.CheckpointError, match=r"last\.safetensors cannot be written .*No space left.* is whole"):
        files.save_checkpoint(path, written)
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == ["last.safetensors"]


def test_missing_file_is_named(tmp_path):
    with pytest.raises(files.CheckpointError, match=r"no checkpoint at .*nothing\.safetensors"):
        files.load_checkpoint(tmp_path / "nothing.safetensors")


@pytest.mark.parametrize("damage", [b"", b"not a checkpoint at all", b"PK\x03\x04" + bytes(200)])
def test_damaged_file_is_named(tmp_path, damage):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(damage)
    with pytest.raises(files.CheckpointError, match=r"bad\.safetensors is not a readable checkpoint"):
        files.load_checkpoint(path)


def test_truncated_file_is_named(saved):
    path, _ = saved
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(files.CheckpointError, match="not a readable checkpoint"):
        files.load_checkpoint(path)


def test_foreign_safetensors_is_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"w": torch.zeros(1)}, path)
    with pytest.raises(files.CheckpointError, match="was not written by adaptive-window"):
        files.load_checkpoint(path)


def test_newer_format_says_upgrade(tmp_path):
    path = tmp_path / "new.safetensors"
    save_file({"w": torch.zeros(1)}, path, metadata={files.KEY: json.dumps({"format": files.FORMAT + 1})})
    with pytest.raises(files.CheckpointError, match="upgrade adaptive-window"):
        files.load_checkpoint(path)


def test_optimizer_state_survives_by_name():
    def build():
        torch.manual_seed(0)
        module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
        return module, torch.optim.AdamW(module.parameters(), lr=0.1)

    def advance(module, optimizer, steps):
        for k in range(steps):
            module(torch.full((5, 3), float(k + 1))).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    straight, optimizer = build()
    advance(straight, optimizer, 2)
    resumed, fresh = build()
    resumed.load_state_dict(straight.state_dict())
    state.restore_optimizer(fresh, resumed, state.optimizer_state(optimizer, straight))
    advance(straight, optimizer, 2)
    advance(resumed, fresh, 2)
    for a, b in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
