"""The ablation: variants differ by one part, the score is fair, and the command writes what it promises."""

import csv
import dataclasses
import json
import typing

import pytest
import torch
import yaml
from clips import Clips, ConvolutionCodec, small_config, smooth_latents

from adaptive_window import cli
from adaptive_window import config as config_module
from adaptive_window.audio.synthesis import write_demo_set
from adaptive_window.config import AblateConfig, UsageError, options
from adaptive_window.training import ablation
from adaptive_window.training.checkpoint import load_checkpoint
from adaptive_window.training.initial import DEFAULT_WEIGHTS
from adaptive_window.training.loop import Trainer
from adaptive_window.training.objective import Objective


@pytest.fixture
def trainer(tmp_path):
    clips = Clips(smooth_latents(3, seed=1), smooth_latents(3, seed=2))
    return Trainer(small_config(tmp_path, num_pairs=2), ConvolutionCodec(), clips, clips, **ablation.SMALL)


@pytest.mark.parametrize(("answer", "expected"), [("target", 0.0), ("constant", 1.0)])
def test_distances_are_those_of_patterns_and_constants(trainer, monkeypatch, answer, expected):
    """A perfect pattern has distance 0 (skill 1); the window's mean over time has the constant's (skill 0)."""

    def compose(x, y, windows):
        wanted = ablation.resample_windows(y, windows["start_target"], windows["ratio_target"], 40)
        output = wanted if answer == "target" else wanted.mean(-1, keepdim=True).expand_as(wanted)
        return output, torch.zeros(*output.shape[:2], 3)

    monkeypatch.setattr(trainer.agent, "compose_windows", compose)
    distance, constant = ablation.distances(trainer)
    assert constant > 0.01
    assert distance / constant == pytest.approx(expected, abs=1e-6)


def test_every_clip_counts_alike(trainer):
    """Three clips in batches of two: the same as one by one."""
    by_two = ablation.distances(trainer)
    trainer.config.batch_size = 1
    assert ablation.distances(trainer) == pytest.approx(by_two, rel=1e-5)


def test_table_compares_each_variant_with_the_one_before():
    skills = {"single window": (0.2, 0.3), "+ multiple windows": (0.3, 0.2), "+ compression": (0.3, 0.3),
              "+ tonality": (0.1, 0.1)}  # fmt: skip
    scores = [
        ablation.Score(variant, seed, skill, 1 - skill, 1.0, 0.5)
        for variant, row in skills.items()
        for seed, skill in enumerate(row)
    ]
    lines = ablation.as_table(scores).splitlines()
    assert lines[2].startswith("| single window | 0.2500 ± 0.0707 |  |  | 0.7500 | 1.0000 | 0.50 |")
    assert "| +0.0000 ± 0.1414 (+0.0 ± 56.6 %) | 1 of 2 |" in lines[3]
    assert "| -0.2000 ± 0.0000 (-66.7 ± 0.0 %) | 0 of 2 |" in lines[5]


def test_no_share_of_what_may_as_well_be_nothing():
    scores = [
        ablation.Score(variant, seed, skill, 1 - skill, 1.0, 0.5)
        for variant in ablation.VARIANTS
        for seed, skill in enumerate((-0.01, 0.02) if variant == "single window" else (0.03, 0.05))
    ]
    lines = ablation.as_table(scores).splitlines()
    assert "| +0.0350 ± 0.0071 | 2 of 2 |" in lines[3]
    assert "| +0.0000 ± 0.0000 (+0.0 ± 0.0 %) | 0 of 2 |" in lines[4]


def test_command(tmp_path, capsys):
    songs, out = tmp_path / "songs", tmp_path / "out"
    write_demo_set(songs, pairs=1, val=1, seconds=4.0, seed=3)
    arguments = ["ablate", "--data", songs, "--out", out, "--cache", tmp_path / "cache", "--clip-seconds", 3]
    sizes = ["--window-seconds", 2, "--max-steps", 1, "--batch-size", 1, "--seeds", 1, "--seed", 5, "--num-pairs", 2]
    assert cli.main([str(a) for a in (*arguments, *sizes)]) == 0
    table = (out / "ablation.md").read_text()
    assert table in capsys.readouterr().out
    with (out / "ablation.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["variant"], row["seed"]) for row in rows] == [(variant, "5") for variant in ablation.VARIANTS]
    for row in rows:
        assert float(row["skill"]) == pytest.approx(1 - float(row["distance"]) / float(row["constant"]))
    assert (out / "ablation.png").stat().st_size > 5000
    assert yaml.safe_load((out / "config.yaml").read_text())["max_steps"] == 1

    windows = []  # what each variant could choose, from its log
    for k in range(4):
        last = (out / "runs" / f"{k}-seed5" / "metrics.jsonl").read_text().splitlines()[-1]
        windows.append({name: value for name, value in json.loads(last).items() if name.startswith("windows/")})
        assert not list((out / "runs" / f"{k}-seed5").glob("*.safetensors"))
    assert [("windows/pair1/strength" in found) for found in windows] == [False, True, True, True]
    assert [found["windows/pair0/ratio_input"] == 1.0 for found in windows] == [True, True, False, False]
    assert [found["windows/pair0/strength"] == 0.0 for found in windows] == [True, True, True, False]

    assert cli.main([str(a) for a in (*arguments, *sizes)]) == 2
    assert f"{out} holds an ablation already: name another --out" in capsys.readouterr().err
    assert cli.main(["ablate", "--data", str(songs), "--out", str(tmp_path / "other"), "--clip-seconds", "1"]) == 2
    assert "shorter than --window-seconds" in capsys.readouterr().err


def test_runs_share_their_data_and_differ_by_seed(tmp_path, monkeypatch):
    config = AblateConfig(out=tmp_path, seed=7, max_ratio=1.4, ratio_diversity_weight=1.0)
    base = ablation.base_config(config)
    assert base.seed == 7
    assert base.data == tmp_path / "songs"
    assert base.examples == 0

    class Seen(Exception):
        pass

    def look(changed, *_, **__):
        raise Seen(changed)

    monkeypatch.setattr(ablation, "Trainer", look)
    for variant, seed in ((variant, seed) for variant in ablation.VARIANTS for seed in (7, 8)):
        with pytest.raises(Seen) as caught:
            ablation.run_variant(config, base, variant, seed, None, None, None)
        changed = caught.value.args[0]
        assert changed.seed == seed
        assert changed.data == base.data
        parts = (changed.num_pairs > 1, changed.max_ratio > 1.0, changed.max_strength > 0.0)
        assert parts == tuple(ablation.VARIANTS.index(variant) >= k for k in (1, 2, 3))
        diverse = "ratio_diversity" in {term.name for term, _ in Objective(ConvolutionCodec(), changed).terms}
        assert diverse == (ablation.VARIANTS.index(variant) >= 2)  # and no variant refuses what the whole agent takes


def test_by_default_skill_is_what_is_trained(tmp_path):
    """The original's objective: patterns are the target's windows, and new; nothing acts on the transform besides."""
    objective = Objective(ConvolutionCodec(), ablation.base_config(AblateConfig(out=tmp_path)))
    assert {term.name: weight for term, weight in objective.terms} == {"spectral": 1.0, "novelty": 0.1}
    assert (objective.like, objective.regrooves) == ("target", False)


@pytest.mark.parametrize("group", [options.AgentOptions, options.ObjectiveOptions])
def test_the_objective_and_the_agent_are_what_flags_say(tmp_path, monkeypatch, group):
    """Every flag that `train` has of them reaches the runs, at a value that is no default."""
    ours = {field.name: field for field in dataclasses.fields(AblateConfig)}
    told = {}
    for field in dataclasses.fields(group):
        choices = typing.get_args(typing.get_type_hints(group)[field.name])
        values = [v for v in choices if isinstance(v, str) and v != ours[field.name].default] or [0.25, 0.125]
        told[field.name] = next((value for value in values if value != field.default), values[0])
    flags = [word for name, value in told.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    parsed = vars(cli.build_parser().parse_args(["ablate", "--out", str(tmp_path), *flags]).ablate)
    config = AblateConfig(**{name: value for name, value in parsed.items() if name != "config"})

    seen = []
    monkeypatch.setattr(ablation, "Trainer", lambda changed, *_, **__: seen.append(changed) or 1 / 0)
    for variant in ablation.VARIANTS:
        with pytest.raises(ZeroDivisionError):
            ablation.run_variant(config, ablation.base_config(config), variant, 0, None, None, None)
    for changed in seen[2:]:
        assert {name: getattr(changed, name) for name in told} == told


def test_the_reduced_agent_has_the_sizes_of_the_packages_weights():
    of_weights = load_checkpoint(DEFAULT_WEIGHTS).info["agent"]
    assert {name: of_weights[name] for name in ablation.REDUCED} == ablation.REDUCED
    sizes = typing.get_args(typing.get_type_hints(AblateConfig)["agent"])
    assert set(sizes) == set(ablation.SIZES)


def test_an_ablation_begun_before_its_objective_could_be_told_is_not_mixed_with_another(tmp_path):
    """It was trained by `train`'s."""
    config = AblateConfig(out=tmp_path, resume=True)
    saved = yaml.safe_load(config_module.to_yaml(config))
    for group in (options.ObjectiveOptions, options.AgentOptions):
        for field in dataclasses.fields(group):
            if field.name not in ("spectral", "novelty_weight"):  # these it could
                del saved[field.name]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(saved))
    with pytest.raises(
        UsageError, match=r"its conflict_weight is None, here 0\.0; .* its harmony_from is target, here"
    ):
        ablation.check_same(config)
    told = {"rhythm_from": "input", "harmony_from": "target", "conflict_weight": None, "dropout": 0.1}
    ablation.check_same(dataclasses.replace(config, **told))


def test_an_interrupted_ablation_goes_on_where_it_was(tmp_path, monkeypatch):
    ran, stop_at = [], [3]

    def run_variant(config, base, variant, seed, *_):
        if len(ran) == stop_at[0]:
            raise KeyboardInterrupt
        ran.append((variant, seed))
        return ablation.Score(variant, seed, 0.5, 0.5, 1.0, 0.25)

    monkeypatch.setattr(ablation, "run_variant", run_variant)
    monkeypatch.setattr(ablation, "prepare_data", lambda *_: (None, None, None))
    monkeypatch.setattr(ablation, "write_demo_set", lambda *_, **__: [])
    config = AblateConfig(out=tmp_path / "out", seeds=2)
    with pytest.raises(UsageError, match="no ablation to go on with"):
        ablation.run_ablation(dataclasses.replace(config, resume=True))
    with pytest.raises(KeyboardInterrupt):
        ablation.run_ablation(config)
    with pytest.raises(UsageError, match="--resume"):
        ablation.run_ablation(config)
    with pytest.raises(UsageError, match="its max_steps is 400, here 7"):
        ablation.run_ablation(dataclasses.replace(config, resume=True, max_steps=7))
    stop_at[0] = None
    table = ablation.run_ablation(dataclasses.replace(config, resume=True))
    assert sorted(ran) == sorted((variant, seed) for variant in ablation.VARIANTS for seed in (0, 1))  # none twice
    assert len(ablation.read_csv(tmp_path / "out" / "ablation.csv")) == 8
    assert (tmp_path / "out" / "ablation.md").read_text() == table + "\n"


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_variant_goes_on_from_its_checkpoint(tmp_path, monkeypatch, interrupted):
    config = AblateConfig(out=tmp_path, resume=True)
    if interrupted:
        (tmp_path / "runs" / "0-seed0").mkdir(parents=True)
        (tmp_path / "runs" / "0-seed0" / "last.safetensors").write_bytes(b"of the run before")

    def look(changed, *_, **__):
        raise InterruptedError(changed)

    monkeypatch.setattr(ablation, "Trainer", look)
    with pytest.raises(InterruptedError) as caught:
        ablation.run_variant(config, ablation.base_config(config), ablation.VARIANTS[0], 0, None, None, None)
    assert caught.value.args[0].resume is interrupted
