"""Files that run code when they are unpickled: nothing here unpickles them, whatever they are called."""

import io
import os
import pickle
import struct
import tarfile
import zipfile

import numpy as np
import pytest
import torch

from adaptive_window import cli
from adaptive_window.audio.codec import CodecUnavailable
from adaptive_window.audio.weights import read_state
from adaptive_window.training.checkpoint import LAST, CheckpointError, load_checkpoint, load_last


class Calls:
    """Pickles as the call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Builds:
    """Pickles as an object whose state is set by a call."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return dict, (), None, None, iter([("x", Calls(os.mkdir, self.mark))])


def saved(thing, **options):
    stream = io.BytesIO()
    torch.save(thing, stream, **options)
    return stream.getvalue()


def module_with(thing):
    module = torch.nn.Linear(1, 1)
    module.extra = thing
    return module


def in_zip(content, name="archive/data.pkl"):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(name, content)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return stream.getvalue()


def in_tar(content):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


def as_numpy(thing):
    stream = io.BytesIO()
    np.save(stream, np.array([thing], dtype=object), allow_pickle=True)
    return stream.getvalue()


def after_a_header(content):
    """A safetensors header that claims one tensor, whose bytes are the pickle."""
    header = b'{"w":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}' % (len(content), len(content))
    return struct.pack("<Q", len(header)) + header + content


def by_opcodes(text):
    return lambda mark: text.replace("MARK", mark).encode()


# name of the file, content from the path of a folder that the payload makes, and how it goes off where it is trusted
PICKLES = {
    "os-mkdir-protocol-0.pt": lambda m: pickle.dumps(Calls(os.mkdir, m), 0),
    "os-mkdir-protocol-1.pth": lambda m: pickle.dumps(Calls(os.mkdir, m), 1),
    "os-mkdir-protocol-2.bin": lambda m: pickle.dumps(Calls(os.mkdir, m), 2),
    "os-mkdir-protocol-4.safetensors": lambda m: pickle.dumps(Calls(os.mkdir, m), 4),
    "os-mkdir-protocol-5.ckpt": lambda m: pickle.dumps(Calls(os.mkdir, m), 5),
    "os-system.safetensors": lambda m: pickle.dumps(Calls(os.system, f"mkdir {m}")),
    "exec.pt": lambda m: pickle.dumps(Calls(exec, f"import os; os.mkdir({m!r})")),
    "eval.pt": lambda m: pickle.dumps(Calls(eval, f"__import__('os').mkdir({m!r})")),
    "in-a-state-dict.pt": lambda m: pickle.dumps({"model": {"w": Calls(os.mkdir, m)}}),
    "in-a-build.pt": lambda m: pickle.dumps(Builds(m)),
    "by-inst.pt": by_opcodes("(S'MARK'\nios\nmkdir\n."),
    "by-global-and-reduce.safetensors": by_opcodes("cos\nmkdir\n(S'MARK'\ntR."),
    "by-obj.pt": by_opcodes("(cos\nmkdir\nS'MARK'\no."),
}
ARCHIVES = {
    "torch-zip.pt": lambda m: saved({"w": Calls(os.mkdir, m)}),
    "torch-zip.safetensors": lambda m: saved({"best_state": Calls(os.mkdir, m)}),
    "torch-before-zip.pt": lambda m: saved({"w": Calls(os.mkdir, m)}, _use_new_zipfile_serialization=False),
    "zip-by-hand.ckpt": lambda m: in_zip(pickle.dumps(Calls(os.mkdir, m), 2)),
    "module.pt": lambda m: saved(module_with(Calls(os.mkdir, m))),
    "tar.pt": lambda m: in_tar(pickle.dumps(Calls(os.mkdir, m), 2)),
    "numpy.safetensors": lambda m: as_numpy(Calls(os.mkdir, m)),
    "behind-a-header.safetensors": lambda m: after_a_header(pickle.dumps(Calls(os.mkdir, m), 2)),
}
FILES = {**PICKLES, **ARCHIVES}


@pytest.fixture
def mark(tmp_path):
    return tmp_path / "executed"


@pytest.mark.parametrize("name", FILES)
def test_no_reader_executes_it(tmp_path, mark, name):
    path = tmp_path / name
    path.write_bytes(FILES[name](str(mark)))
    with pytest.raises(CheckpointError, match=r"is not a readable checkpoint|was not written by adaptive-window"):
        load_checkpoint(path)
    (tmp_path / LAST).write_bytes(path.read_bytes())
    with pytest.raises(CheckpointError):
        load_last(tmp_path)
    if name == "behind-a-header.safetensors":  # bytes like any others
        assert read_state(path)["w"].dtype == torch.uint8
    else:
        with pytest.raises(CodecUnavailable):
            read_state(path)
    assert not mark.exists()


TRUSTING = {
    **dict.fromkeys(PICKLES, pickle.load),
    **{
        name: lambda file: torch.load(file, weights_only=False)
        for name in ARCHIVES
        if name.startswith(("torch", "mod"))
    },
    "numpy.safetensors": lambda file: np.load(file, allow_pickle=True),
}


@pytest.mark.parametrize("name", TRUSTING)
def test_a_trusting_reader_would_have(mark, name):
    """Otherwise the test above would show nothing."""
    TRUSTING[name](io.BytesIO(FILES[name](str(mark))))
    assert mark.is_dir()


def test_there_are_twenty():
    assert len(FILES) >= 20
    assert len(TRUSTING) >= len(FILES) - 3


@pytest.mark.parametrize("name", ["torch-zip.pt", "os-mkdir-protocol-4.safetensors"])
@pytest.mark.parametrize("command", ["compose", "plot"])
def test_a_pickle_given_as_checkpoint_is_refused_in_words(tmp_path, mark, capsys, name, command):
    path = tmp_path / name
    path.write_bytes(FILES[name](str(mark)))
    output = tmp_path / ("out.wav" if command == "compose" else "out.png")
    assert cli.main([command, "a.wav", "b.wav", "--checkpoint", str(path), "-o", str(output)]) == 2
    said = capsys.readouterr().err
    assert f"{name} is not a readable checkpoint" in said
    assert "a pickle or a zip, as torch.save writes it, and never opened here" in said
    assert not mark.exists()


def test_a_config_file_makes_no_objects(tmp_path, mark):
    """YAML can name functions to call, too."""
    path = tmp_path / "run.yaml"
    path.write_text(f'data: !!python/object/apply:os.mkdir ["{mark}"]\nout: {tmp_path / "out"}\n')
    with pytest.raises(SystemExit):
        cli.main(["train", "--config", str(path)])
    assert not mark.exists()
