"""Arguments of `refine_windows` that are refused, and what is said of them."""

import pytest
import torch

from adaptive_window import refine_windows

X = torch.randn(2, 4, 60)
BAD = {
    "x no tensor": (TypeError, r"x must be a torch\.Tensor", {"x": [1]}),
    "x rank": (ValueError, r"x must have shape \[B, C, T\]", {"x": X[0]}),
    "y integer": (TypeError, r"y must have a floating dtype", {"y": X.long()}),
    "y dtype": (TypeError, r"y must have the dtype of x", {"y": X.double()}),
    "y channels": (
        ValueError,
        r"y must have the batch and channels of x \[2, 4\], got shape \[2, 3, 60\]",
        {"y": X[:, :3]},
    ),
    "empty": (ValueError, r"x must have at least one clip", {"x": X[:0]}),
    "window": (TypeError, r"window_frames must be an int", {"window_frames": 40.0}),
    "window small": (ValueError, r"window_frames must be at least 2, got 1", {"window_frames": 1}),
    "x short": (ValueError, r"x must have at least window_frames \(70\) frames.*60", {"window_frames": 70}),
    "y short": (ValueError, r"y must hold its window: start_y 0 \+ ratio_y 1 · 40", {"y": X[..., :30]}),
    "y beyond": (ValueError, r"y must hold its window: start_y 10", {"start_y": 10, "ratio_y": 1.5}),
    "y negative": (ValueError, r"start_y must be finite and at least 0 frames, got -1", {"start_y": -1.0}),
    "ratio zero": (ValueError, r"ratio_y must be positive", {"ratio_y": 0}),
    "start list": (TypeError, r"start_y must be a number or a tensor \[B\], got list", {"start_y": [0, 0]}),
    "start shape": (ValueError, r"start_y must be a number or \[B\] with B = 2", {"start_y": torch.zeros(3)}),
    "half a guess": (ValueError, r"ratio_x must be given too where start_x is", {"start_x": 3.0}),
    "other half": (ValueError, r"start_x must be given too where ratio_x is", {"ratio_x": 1.2}),
    "one guess of two": (
        ValueError,
        r"start_x and ratio_x must be given too where start_y is and both are moved",
        {"start_y": 0, "ratio_y": 1, "move": ("x", "y")},
    ),
    "move string": (TypeError, r"move must be a tuple of names", {"move": "x"}),
    "move empty": (ValueError, r'move must be \("x",\)', {"move": ()}),
    "move twice": (ValueError, r"move must be", {"move": ("x", "x")}),
    "move other": (ValueError, r"move must be.*'z'", {"move": ("z",)}),
    "features": (ValueError, r"features must be one of 'latent'.*'mel'", {"features": "mel"}),
    "features type": (TypeError, r"features must be one of", {"features": None}),
    "restarts": (ValueError, r"restarts must be at least 1, got 0", {"restarts": 0}),
    "levels": (TypeError, r"levels must be an int, got float", {"levels": 4.0}),
    "steps": (ValueError, r"steps_per_level must be at least 1", {"steps_per_level": 0}),
    "blur": (ValueError, r"blur must be finite and at least 0 frames, got -1", {"blur": -1}),
    "max_ratio": (ValueError, r"max_ratio must be finite and at least 1, got 0.5", {"max_ratio": 0.5}),
    "max_ratio type": (TypeError, r"max_ratio must be a number, got str", {"max_ratio": "2"}),
    "backend": (ValueError, r"backend must be one of", {"backend": "cuda"}),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_named(name):
    error, match, change = BAD[name]
    with pytest.raises(error, match=match):
        refine_windows(**{"x": X, "y": X, "window_frames": 40, **change})
