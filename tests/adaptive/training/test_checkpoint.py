import json
import random

import pytest
import torch
from safetensors.torch import load_file, save_file

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


@pytest.mark.parametrize("opens", ["safe_open", "_check_seal"])
def test_replaced_as_it_is_read_it_is_read_anew(saved, monkeypatch, opens):
    """By a training that goes on, of another length of its header: what is read is one of the two, whole."""
    path, _ = saved
    another = files.Checkpoint(model={"a.weight": torch.full((2, 3), 9.0)}, info={"progress": {"step": 4444}})
    original = getattr(files, opens)

    def replaced_first(*arguments, **options):
        monkeypatch.setattr(files, opens, original)
        result = original(*arguments, **options)
        files.save_checkpoint(path, another)
        return result

    monkeypatch.setattr(files, opens, replaced_first)
    read = files.load_checkpoint(path)
    assert read.info["progress"] == {"step": 4444}
    assert read.model.keys() == another.model.keys()
    assert torch.equal(read.model["a.weight"], another.model["a.weight"])


def test_a_file_that_torch_cannot_map_is_named(saved, monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("unable to open file")

    monkeypatch.setattr(torch.UntypedStorage, "from_file", refuse)
    with pytest.raises(files.CheckpointError, match=r"not a readable checkpoint.*unable to open file"):
        files.load_checkpoint(saved[0])


def test_leaves_no_temporary_file(saved):
    path, _ = saved
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


def flipped(content, bit):
    return content[: bit // 8] + bytes([content[bit // 8] ^ 1 << bit % 8]) + content[bit // 8 + 1 :]


def test_every_flipped_bit_is_found(saved):
    """1,000 of 1,000: all of the header's length, then the checksum, the rest of the header and the data at random."""
    path, _ = saved
    content = path.read_bytes()
    header_end = 8 + int.from_bytes(content[:8], "little")
    digits = content.index(b'"sha256":"') + len(b'"sha256":"')
    draw = random.Random(0)
    bits = list(range(64))
    bits += draw.sample(range(8 * (digits - 10), 8 * (digits + 65)), 236)  # with its name and quotes
    bits += draw.sample(range(64, 8 * header_end), 300)
    bits += draw.sample(range(8 * header_end, 8 * len(content)), 400)
    found = 0
    for bit in bits:
        path.write_bytes(flipped(content, bit))
        try:
            files.load_checkpoint(path)
        except files.DamagedCheckpoint:
            found += 1
    assert (found, len(bits)) == (1000, 1000)
    path.write_bytes(content)
    files.load_checkpoint(path)


@pytest.mark.parametrize("change", [lambda c: c + b"x", lambda c: c[:-1], lambda c: c[:100], lambda c: bytes(len(c))])
def test_other_damage_is_found(saved, change):
    path, _ = saved
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(files.DamagedCheckpoint, match=r"last\.safetensors is not a readable checkpoint"):
        files.load_checkpoint(path)


def test_any_reader_of_safetensors_opens_it(saved):
    path, written = saved
    tensors = load_file(path)
    assert torch.equal(tensors["model.a.weight"], written.model["a.weight"])


def test_a_text_like_the_checksums_is_no_checksum(tmp_path):
    """Options are strings of the user's; the place of the checksum must not be found in them."""
    path = tmp_path / files.LAST
    trap = '"sha256":"' + "0" * 64 + '"'
    checkpoint = files.Checkpoint(model={"a": torch.ones(2)}, info={"config": {"out": trap, trap: 1}})
    files.save_checkpoint(path, checkpoint)
    assert files.load_checkpoint(path).info["config"]["out"] == trap
    path.write_bytes(flipped(path.read_bytes(), 8 * path.stat().st_size - 1))
    with pytest.raises(files.DamagedCheckpoint, match="checksum differs"):
        files.load_checkpoint(path)


def numbered(step):
    return files.Checkpoint(model={"a": torch.full((4,), float(step))}, info={"progress": {"step": step}})


@pytest.fixture
def two(tmp_path):
    """A folder with `previous` of step 1 and `last` of step 2."""
    for step in (1, 2):
        files.save_checkpoint(tmp_path / files.LAST, numbered(step), previous=tmp_path / files.PREVIOUS)
    return tmp_path


def test_last_is_kept_with_the_one_before(two):
    assert files.load_checkpoint(two / files.PREVIOUS).info["progress"]["step"] == 1
    checkpoint, path = files.load_last(two)
    assert (checkpoint.info["progress"]["step"], path.name) == (2, files.LAST)
    assert sorted(entry.name for entry in two.iterdir()) == [files.LAST, files.PREVIOUS]


def test_a_damaged_last_falls_back_and_says_so(two, capsys):
    (two / files.LAST).write_bytes(flipped((two / files.LAST).read_bytes(), 999))
    checkpoint, path = files.load_last(two)
    assert (checkpoint.info["progress"]["step"], path.name) == (1, files.PREVIOUS)
    said = capsys.readouterr().err
    assert "last.safetensors is not a readable checkpoint" in said
    assert "previous.safetensors" in said


def test_killed_between_the_two_moves(two, monkeypatch, capsys):
    """`last` has become `previous`, the new file has not become `last`: nothing else can be seen at any moment."""
    replace = files.os.replace

    def only_the_first(a, b):
        if b.name == files.LAST:
            raise KeyboardInterrupt
        replace(a, b)

    monkeypatch.setattr(files.os, "replace", only_the_first)
    with pytest.raises(KeyboardInterrupt):
        files.save_checkpoint(two / files.LAST, numbered(3), previous=two / files.PREVIOUS)
    monkeypatch.undo()
    assert [entry.name for entry in two.iterdir()] == [files.PREVIOUS]
    checkpoint, path = files.load_last(two)
    assert (checkpoint.info["progress"]["step"], path.name) == (2, files.PREVIOUS)
    assert "last.safetensors is missing" in capsys.readouterr().err


def test_both_damaged_is_an_error_that_names_the_second(two):
    for name in (files.LAST, files.PREVIOUS):
        (two / name).write_bytes(b"")
    with pytest.raises(files.DamagedCheckpoint, match=r"previous\.safetensors is not a readable"):
        files.load_last(two)


def test_a_newer_last_is_no_damage(two):
    save_file({"w": torch.zeros(1)}, two / files.LAST, metadata={files.KEY: json.dumps({"format": files.FORMAT + 1})})
    with pytest.raises(files.CheckpointError, match="upgrade adaptive-window"):
        files.load_last(two)


def test_leftovers_of_killed_saves_are_removed(two):
    left = two / f".{files.LAST}.{'0' * 12}.tmp"
    left.write_bytes(b"half of it")
    files.save_checkpoint(two / files.LAST, numbered(3))
    assert not left.exists()


def test_format_1_is_still_read(tmp_path):
    """Written before checksums: enough for compose and plot."""
    path = tmp_path / "old.safetensors"
    save_file({"model.w": torch.ones(1)}, path, metadata={files.KEY: json.dumps({"format": 1, "agent": {}})})
    assert torch.equal(files.load_checkpoint(path).model["w"], torch.ones(1))


@pytest.mark.parametrize("text", ["[]", "{}", "not JSON", '{"format": "2"}', "null"])
def test_metadata_of_another_kind_is_named(tmp_path, text):
    path = tmp_path / "odd.safetensors"
    save_file({"w": torch.zeros(1)}, path, metadata={files.KEY: text})
    with pytest.raises(files.DamagedCheckpoint, match="metadata is not what adaptive-window writes"):
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
