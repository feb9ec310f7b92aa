"""Folders that are no agent's, or not whole: each is refused in words, and none is built."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from adaptive_window import AdaptiveWindowCreativeAgent


class Calls:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


SIZES = {"kernel_size": 3, "component_dim": 4, "composer_heads": 2, "composer_layers": 1, "composer_dim": 16}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    AdaptiveWindowCreativeAgent(8, 2, window_frames=24, **SIZES).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "agent")


def refused(folder, words):
    with pytest.raises(ValueError, match=words) as error:
        AdaptiveWindowCreativeAgent.from_pretrained(folder)
    assert str(folder) in str(error.value)


def edited(folder, change):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


CONFIGS = {
    "another architecture": (
        lambda c: [c.clear(), c.update(architectures=["BertModel"], model_type="bert")],
        r"architecture must be AdaptiveWindowCreativeAgent, got \['BertModel'\]: of another model",
    ),
    "a newer format": (lambda c: c.update(format=2), "has format 2, this version reads up to 1: upgrade"),
    "an unknown field": (lambda c: c.update(vocabulary=5), r"has unknown fields: vocabulary \(known: format, version"),
    "a missing field": (lambda c: c.pop("dtype"), "lacks dtype"),
    "a field of another kind": (lambda c: c.update(agent=[]), r"agent must be dict, got \[\]"),
    "a codec without a rate": (
        lambda c: c.update(codec={"name": "mel"}),
        "codec lacks fingerprint, frame_rate, random",
    ),
    "a dtype that is none": (lambda c: c.update(dtype="int8"), "dtype must be one of float32, .*, got 'int8'"),
    "no frames": (lambda c: c.update(clip_frames=0), "clip_frames must be at least 1, got 0"),
    "true for a number": (lambda c: c.update(clip_frames=True), "clip_frames must be int or null, got True"),
    "an unknown argument": (
        lambda c: c["agent"].update(experts=8),
        "the agent has no argument experts: written by a newer version, or for another model",
    ),
    "a count that is text": (
        lambda c: c["agent"].update(num_pairs="2"),
        "no agent can be built from .*: num_pairs must be an int, got str",
    ),
    "a selector that is none": (lambda c: c["agent"].update(selector="best"), "selector must be 'mlp'.* got 'best'"),
    "a width no memory has": (
        lambda c: c["agent"].update(composer_dim=10**12),
        "composer_dim is 1000000000000, which weights of .* numbers cannot have",
    ),
    "layers without end": (lambda c: c["agent"].update(composer_layers=10**5), "composer_layers is 100000, which"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_configuration_that_is_none(folder, case):
    change, words = CONFIGS[case]
    edited(folder, change)
    refused(folder, words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is no JSON: Expecting property name"),
        ("[" * 100_000, "is no JSON: .*recursion"),
        ('{"format": NaN}', "is no JSON: NaN is no number of JSON's"),
        ("[1, 2]", "must hold an object, got list"),
    ],
)
def test_what_is_no_configuration_at_all(folder, text, words):
    (folder / "config.json").write_text(text)
    refused(folder, words)


def test_files_that_are_missing(folder):
    (folder / "config.json").rename(folder / "settings.json")
    refused(folder, r"holds no config\.json, which says how its agent is built")
    (folder / "model.safetensors").unlink()
    refused(folder, r"no checkpoint in the folder .*, and no config\.json with model\.safetensors$")
    (folder / "settings.json").rename(folder / "config.json")
    refused(folder, r"holds no model\.safetensors$")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_a_pickle_is_not_opened(folder, tmp_path, name):
    mark = tmp_path / "executed"
    (folder / "model.safetensors").unlink()
    torch.save({"w": Calls(mark)}, folder / name)
    refused(folder, "never opened here")
    (folder / "config.json").unlink()
    refused(folder, "never opened here" if name.endswith("bin") else r"holds no config\.json")
    assert not mark.exists()


def rename(weights):
    weights["extra.weight"] = weights.pop("window_selector.mlp.0.weight")


def reshape(weights):
    weights["window_selector.mlp.8.bias"] = torch.zeros(15)


def poison(weights):
    weights["tonality_reducer_target.norm.weight"][2] = float("inf")


def round_off(weights):
    weights["window_selector.mlp.8.bias"] = torch.zeros(10, dtype=torch.int64)


def another(weights):
    weights.clear()
    weights.update({f"encoder.layer.{k}.weight": torch.ones(2, 2) for k in range(5)})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (rename, r"1 missing \(window_selector\.mlp\.0\.weight\); 1 unknown \(extra\.weight\)"),
        (reshape, r"1 of another shape \(window_selector\.mlp\.8\.bias: got \[15\], wanted \[10\]\)"),
        (poison, r"1 not finite \(tonality_reducer_target\.norm\.weight\)"),
        (round_off, r"of another kind \(window_selector\.mlp\.8\.bias: got torch\.int64, wanted torch\.float32\)"),
        (another, r"do not fit the agent: 1\d\d missing \(.* more\); 5 unknown \(encoder\.layer\.0\.weight,"),
    ],
)
def test_weights_that_do_not_fit(folder, change, words):
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)
    refused(folder, words)


def test_weights_that_are_damaged(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    refused(folder, "is not a readable checkpoint")
