"""The gradient's part of the search: windows move uphill in coordinates in which every direction counts alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..losses.scale_space import gaussian_blur
from .lattice import Windows
from .matching import correlation

BETAS = (0.9, 0.99)  # of Adam
STEP_OF_BLUR, LEAST_STEP = 0.1, 0.02  # frames that Adam moves a coordinate in a step: 0.1·σ + 0.02
AXES_BLUR = 1 / 100  # of the window: blur of the signal by whose changes frames count, 8 frames for 800
EVEN = 0.002  # share of the mean that a frame of a constant stretch counts: its place is known by the others'


@dataclass(frozen=True)
class Side:
    """One of the two signals: its features `[B, F, T]`, and its window where it stays, else None."""

    features: Tensor
    fixed: Windows | None
    max_ratio: float

    def blurred(self, sigma: float) -> Tensor:
        """Blurred by `sigma` frames of the window, so by r·sigma of its own; where r is sought, its middle serves."""
        if sigma == 0:
            return self.features
        if self.fixed is not None:
            return gaussian_blur(self.features, self.fixed.ratio[:, 0].to(self.features.dtype) * sigma)
        return gaussian_blur(self.features, sigma * math.sqrt(self.max_ratio))


@dataclass(frozen=True)
class Axes:
    """Coordinates of a window: where the other signal's pivot frame lies in it, and ratio times `reach`, in frames.

    A change of either by one frame moves the window's frames by one frame in root mean square, where each counts by how
    much the other signal changes there; and the two changes are orthogonal. So the match falls off alike in both, also
    where all sound is in a few seconds at an end. Where every frame counts the same these are the window's centre and
    its length over √12 (`Windows.coordinates`). pivot and reach are `[B, 1]`.
    """

    pivot: Tensor
    reach: Tensor
    frames: int

    @classmethod
    def of(cls, window: Tensor) -> Axes:
        """By the changes of a window `[B, F, W]` of the other signal."""
        frames = window.shape[-1]
        change = torch.nn.functional.pad(window, (1, 1), mode="replicate")
        weight = (change[..., 2:] - change[..., :-2]).square().sum(1)  # [B, W]
        weight = weight + EVEN * weight.mean(-1, keepdim=True) + torch.finfo(weight.dtype).tiny
        weight = weight / weight.sum(-1, keepdim=True)
        time = torch.arange(frames, dtype=window.dtype, device=window.device) + 0.5
        pivot = (weight * time).sum(-1, keepdim=True)
        return cls(pivot, (weight * (time - pivot).square()).sum(-1, keepdim=True).sqrt(), frames)

    @classmethod
    def even(cls, like: Tensor, frames: int) -> Axes:
        """Every frame counts the same."""
        half = torch.full_like(like[:, 0, :1], frames / 2)
        return cls(half, half / math.sqrt(3), frames)

    def coordinates(self, windows: Windows) -> Tensor:
        """`[B, N, 2]`."""
        return torch.stack((windows.start + windows.ratio * self.pivot, windows.ratio * self.reach), -1)

    def windows(self, coordinates: Tensor) -> Windows:
        pivot, spread = coordinates.unbind(-1)
        ratio = spread / self.reach
        return Windows(pivot - ratio * self.pivot, ratio, self.frames)

    def inside(self, coordinates: Tensor, clip: int, max_ratio: float) -> Tensor:
        """The nearest coordinates `[B, N, 2]` whose window fits into the clip, with a ratio from 1 to the largest.

        Nearest in both at once: pulling one alone would undo, at the clip's ends, every step along them.
        """
        place, spread = coordinates.unbind(-1)
        least, most = self.reach, self.reach * min(max_ratio, clip / self.frames)

        def bounded(spread: Tensor) -> Tensor:
            return torch.minimum(torch.maximum(spread, least), most)

        left, right = self.pivot / self.reach, (self.frames - self.pivot) / self.reach
        alone = bounded(spread)  # what a ratio in range is enough for
        fits = (place >= left * alone) & (place <= clip - right * alone)
        at_left = bounded((left * place + spread) / (1 + left.square()))  # nearest of those that begin at 0
        at_right = bounded((right * (clip - place) + spread) / (1 + right.square()))  # of those that end with the clip
        begun, ended = (
            torch.stack(point, -1) for point in ((left * at_left, at_left), (clip - right * at_right, at_right))
        )
        first, second = ((point - coordinates).square().sum(-1, keepdim=True) for point in (begun, ended))
        on_edge = torch.where(first < second, begun, ended)
        return torch.where(fits[..., None], torch.stack((place, alone), -1), on_edge)


class PlaneAdam:
    """Adam with one scale for both coordinates of a place: its steps keep the gradient's direction.

    With a scale for each, a step along the edge of what fits can point against the slope there.
    """

    def __init__(self, place: Tensor) -> None:
        self.mean, self.square, self.count = torch.zeros_like(place), torch.zeros_like(place[..., :1]), 0

    def step(self, gradient: Tensor) -> Tensor:
        """The step `[..., 2]` for a rate of 1: about a frame in each coordinate, where gradients agree."""
        self.count += 1
        (fast, slow), n = BETAS, self.count
        self.mean = fast * self.mean + (1 - fast) * gradient
        self.square = slow * self.square + (1 - slow) * gradient.square().mean(-1, keepdim=True)
        return self.mean / (1 - fast**n) / ((self.square / (1 - slow**n)).sqrt() + 1e-8)


@torch.enable_grad()
def descend(
    sides: list[Side], frames: int, windows: Sequence[Windows], sigmas: list[float], steps: int, backend: str
) -> list[Windows]:
    """Moves windows `[B, N]` of each moved signal uphill through the levels."""
    fixed_side = next((side for side in sides if side.fixed is not None), None)
    if fixed_side is None or fixed_side.fixed is None:
        axes = Axes.even(sides[0].features, frames)
    else:
        axes = Axes.of(fixed_side.fixed.read(fixed_side.blurred(AXES_BLUR * frames), frames, backend)[:, 0])
    moved = [side for side in sides if side.fixed is None]
    places = [axes.coordinates(w).requires_grad_() for w in windows]
    adam = [PlaneAdam(place) for place in places]
    for sigma in sigmas:
        count = frames if sigma < 2 else math.ceil(2 * frames / sigma)  # blurred: a frame every σ/2 is enough
        rate = STEP_OF_BLUR * sigma + LEAST_STEP
        blurred = [side.blurred(sigma) for side in sides]
        still = [
            side.fixed.read(signal, count, backend)
            for side, signal in zip(sides, blurred, strict=True)
            if side.fixed is not None
        ]
        for _ in range(steps):
            read = [axes.windows(p).read(signal, count, backend) for p, signal in zip(places, blurred, strict=False)]
            total = correlation(*read, *still).sum()  # the problems are independent: so are their gradients
            uphill = torch.autograd.grad(total, places)
            with torch.no_grad():
                for place, side, slope, state in zip(places, moved, uphill, adam, strict=True):
                    there = place + rate * state.step(slope)
                    place.copy_(axes.inside(there, side.features.shape[-1], side.max_ratio))
    return [axes.windows(place.detach()) for place in places]
