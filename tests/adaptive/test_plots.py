import html
import warnings
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.text import Text

from adaptive_window.plots import (
    PairWindows,
    ablation_figure,
    figure_image,
    literal,
    save_figure,
    trajectory_figure,
    windows_figure,
)

PAIRS = [PairWindows(0.0, 0.5, 1.0, 1.25, 0.5), PairWindows(4.0, 1.0, 1.2, 1.0, 0.1)]


def draw(pairs=PAIRS, **options):
    noise = np.random.default_rng(0).standard_normal((16, 120))
    return windows_figure(noise, noise, pairs, clip_seconds=24.0, window_seconds=16.0, **options)


def test_every_window_is_drawn_where_it_lies():
    top, _, bottom = draw().axes
    outlines = [patch for patch in top.patches if not patch.get_fill()]
    assert [(patch.get_x(), patch.get_width()) for patch in outlines] == [(0.0, 16.0), (4.0, pytest.approx(19.2))]
    outlines = [patch for patch in bottom.patches if not patch.get_fill()]
    assert [(patch.get_x(), patch.get_width()) for patch in outlines] == [(0.5, 20.0), (1.0, 16.0)]
    assert "pair 1: 4.00 s, ×1.20, strength 0.10" in [text.get_text() for text in top.texts]


def test_pairs_differ_without_colour():
    top = draw().axes[0]
    styles = {patch.get_linestyle() for patch in top.patches if not patch.get_fill()}
    assert len(styles) == len(PAIRS)


def test_warp_lines_join_equal_moments_of_the_pattern():
    lines = draw(PAIRS[:1]).artists
    ends = [(line.xy1[0], line.xy2[0]) for line in lines]
    assert ends == [pytest.approx((moment, 0.5 + 1.25 * moment)) for moment in (0, 4, 8, 12, 16)]


def test_planted_truth_is_overlaid():
    plain, planted = draw().axes[0].patches, draw(truth=[PairWindows(2, 2, 1.5, 1.5, 0)]).axes[0].patches
    assert len(planted) == len(plain) + 1


def test_planted_sections_are_named_where_they_lie():
    top, _, bottom = draw(sections_input=[("A", 0.0), ("B", 10.0)], sections_target=[("B", 0.0), ("A", 14.0)]).axes
    assert [(t.get_text(), t.get_position()[0]) for t in top.texts[:2]] == [("A", 5.0), ("B", 17.0)]
    assert [(t.get_text(), t.get_position()[0]) for t in bottom.texts[:2]] == [("B", 7.0), ("A", 19.0)]
    assert [line.get_xdata()[0] for line in bottom.lines] == [14.0]


def test_numbers_stand_on_the_first_line_of_each_pair():
    middle = draw().axes[1]
    assert middle.get_xlim() == (0.0, 24.0)
    assert [t.get_text() for t in middle.texts] == ["0", "1"]
    for text, pair in zip(middle.texts, PAIRS, strict=True):
        x, y = text.get_position()
        assert x == pytest.approx(pair.start_target + y * (pair.start_input - pair.start_target))


def test_axes_are_in_seconds_and_labelled():
    bottom = draw().axes[2]
    assert bottom.get_xlim() == (0.0, 24.0)
    assert bottom.get_xlabel() == "time in the clip (s)"


def test_clips_of_other_lengths_and_places_share_a_scale():
    top, _, bottom = draw(PAIRS[:1], target_seconds=16.0, begins=(10.0, 100.0), labels=["found"]).axes
    assert (top.get_xlim(), bottom.get_xlim()) == ((10.0, 34.0), (100.0, 124.0))
    assert [tuple(axes.images[0].get_extent()[:2]) for axes in (top, bottom)] == [(10.0, 34.0), (100.0, 116.0)]
    assert bottom.get_xlabel() == "time in the song (s)"
    assert bottom.texts[0].get_text() == "found: 0.50 s to 20.50 s, ×1.250"


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_saves_by_suffix(tmp_path, suffix):
    path = tmp_path / f"picture{suffix}"
    save_figure(draw(), path)
    assert path.stat().st_size > 5000


def test_another_suffix_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"picture\.jpg: a picture's suffix must be"):
        save_figure(draw(), tmp_path / "picture.jpg")


def test_constant_image_draws():
    figure = windows_figure(np.zeros((4, 8)), np.zeros((4, 8)), PAIRS, clip_seconds=24.0, window_seconds=16.0)
    assert figure_image(figure).shape[2] == 3


def test_trajectory_has_a_line_for_every_pair():
    values = np.arange(6.0).reshape(3, 2)
    figure = trajectory_figure([0, 10, 20], {"start (s)": values, "ratio": values})
    for axes in figure.axes:
        assert len(axes.lines) == 2
        assert axes.lines[1].get_ydata().tolist() == [1.0, 3.0, 5.0]
    assert figure.axes[1].get_xlabel() == "optimizer step"


def test_trajectory_draws_batches_as_lines_and_evaluations_as_marks():
    marks, batches = np.arange(4.0).reshape(2, 2), np.arange(8.0).reshape(4, 2)
    figure = trajectory_figure([2, 4], {"ratio": marks}, line_steps=[1, 2, 3, 4], lines={"ratio": batches})
    found = [(line.get_linestyle(), line.get_marker(), line.get_ydata().tolist()) for line in figure.axes[0].lines]
    assert found == [
        ("-", "None", [0, 2, 4, 6]),
        ("None", "o", [0, 2]),
        ("--", "None", [1, 3, 5, 7]),
        ("None", "s", [1, 3]),
    ]


def test_ablation_shows_every_run_and_the_mean():
    axes = ablation_figure({"single": [0.1, 0.3], "+ more": [0.4, 0.4]}).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["single", "+ more"]
    rings = [line.get_xdata().tolist() for line in axes.lines[::2]]
    assert rings == [[0.1, 0.3], [0.4, 0.4]]
    assert [text.get_text() for text in axes.texts] == ["0.200", "0.400"]


ODD_NAMES = ["Ba$$in", r"$\frac{1}{", "a\nb\tc", "caf\udce9", "x" * 300, "\x1b[31m", r"50% \alpha _x^2 {", "<&>'", "夜"]


@pytest.mark.parametrize("name", ODD_NAMES)
@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_texts_from_outside_are_drawn_as_they_are(name: str, suffix: str, tmp_path: Path) -> None:
    pair = PairWindows(0.0, 0.0, 1.0, 1.0, 0.5)
    image = np.random.default_rng(0).random((4, 50))
    with warnings.catch_warnings(), matplotlib.rc_context({"svg.fonttype": "none"}):
        warnings.simplefilter("error")
        figure = windows_figure(
            image,
            image,
            [pair],
            clip_seconds=2,
            window_seconds=1,
            title=name,
            labels=[name],
            sections_input=[(name, 0)],
        )
        save_figure(figure, tmp_path / f"p{suffix}")
    assert figure.get_suptitle() == literal(name)
    assert not any(text.get_parse_math() for text in figure.findobj(Text) if text.get_text() == literal(name))
    if suffix == ".svg" and len(name) < 90:
        assert literal(name) in html.unescape((tmp_path / "p.svg").read_text())


def test_literal_keeps_what_can_be_shown() -> None:
    assert [literal(name) for name in ("Ba$$in", "a\nb", "caf\udce9", "夜")] == ["Ba$$in", "a\\nb", "caf\\xe9", "夜"]
    assert len(literal("x" * 300)) == 90
