"""The drawing of centre voting: two nuclei that touch, through the decoder that the package uses."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from canvas import BLUE, GRID, INK, ORANGE, RED, SOFT, Canvas

from nucleipan.network.voting import VotingConfig, cpu

_CELL, _SHAPE = 6.0, (24, 36)
# y, x and half axes of the nuclei, in pixels.
_NUCLEI = ((11.0, 11.0, 8.0, 8.5), (13.0, 25.5, 7.0, 7.5))
_COLOURS = ("#ffffff", BLUE, ORANGE)


def centre_voting() -> str:
    """A mask with offsets, where its pixels land, and the instances that follow."""
    nucleus, offsets = _outputs()
    instances, _ = cpu.vote(nucleus, offsets, VotingConfig())
    landings = _landings(nucleus, offsets)
    c = Canvas(
        740,
        228,
        "Nucleus pixels jump by their offsets; where many land is a centre; pixels belong to the centre they reach",
    )
    titles = ("nucleus logit and offsets", "where the pixels land", "who belongs to whom")
    notes = (
        "what the network says of every pixel",
        "local maxima of the votes are centres",
        "touching nuclei come apart",
    )
    for k, (title, note) in enumerate(zip(titles, notes, strict=True)):
        x = 18 + k * 240
        c.text((x, 26), title, font_weight="bold")
        c.text((x, 212), note, SOFT, font_size=12)
        c.rect((x, 40), (_SHAPE[1] * _CELL, _SHAPE[0] * _CELL), "#ffffff", GRID)
    _mask(c, (18, 40), (nucleus > 0).astype(int) * 3)
    _arrows(c, (18, 40), nucleus, offsets)
    _mask(c, (258, 40), (nucleus > 0).astype(int) * 3)
    _votes(c, (258, 40), landings)
    _mask(c, (498, 40), instances)
    return c.svg()


def _outputs() -> tuple[np.ndarray, np.ndarray]:
    """float32[h, w] logit and float32[2, h, w] offsets, as a network might give them: not quite right."""
    y, x = np.mgrid[: _SHAPE[0], : _SHAPE[1]].astype(np.float32)
    radii = np.stack([((y - cy) / a) ** 2 + ((x - cx) / b) ** 2 for cy, cx, a, b in _NUCLEI])
    own = radii.argmin(0)
    centres = np.array([n[:2] for n in _NUCLEI], np.float32)[own]
    noise = np.random.default_rng(5).normal(0, 1.1, (2, *_SHAPE))
    offsets = np.stack([centres[..., 0] - y, centres[..., 1] - x]) + noise
    return (1 - radii.min(0)).astype(np.float32), offsets.astype(np.float32)


def _landings(nucleus: np.ndarray, offsets: np.ndarray) -> dict[tuple[int, int], int]:
    """How many pixels end where, after the decoder's jumps."""
    votes: dict[tuple[int, int], int] = {}
    for y, x in np.argwhere(nucleus > 0):
        for _ in range(VotingConfig().jumps):
            if nucleus[y, x] <= 0:
                break
            dy, dx = np.floor(offsets[:, y, x] + 0.5).astype(int)
            y, x = min(max(y + dy, 0), _SHAPE[0] - 1), min(max(x + dx, 0), _SHAPE[1] - 1)
        votes[int(y), int(x)] = votes.get((int(y), int(x)), 0) + 1
    return votes


def _mask(c: Canvas, at: tuple[float, float], ids: np.ndarray) -> None:
    """Runs of pixels in the colour of their id; 3 is a nucleus that is not told from others yet."""
    for row, line in enumerate(ids):
        ends = [0, *(np.flatnonzero(np.diff(line)) + 1), len(line)]
        for first, last in pairwise(ends):
            if line[first]:
                colour = "#c7d2fe" if line[first] == 3 else _COLOURS[line[first]]
                c.rect((at[0] + first * _CELL, at[1] + row * _CELL), ((last - first) * _CELL, _CELL), colour)


def _arrows(c: Canvas, at: tuple[float, float], nucleus: np.ndarray, offsets: np.ndarray) -> None:
    for y in range(1, _SHAPE[0], 3):
        for x in range(1, _SHAPE[1], 3):
            if nucleus[y, x] > 0:
                start = at[0] + (x + 0.5) * _CELL, at[1] + (y + 0.5) * _CELL
                dy, dx = offsets[:, y, x] * _CELL * 0.55  # shortened, to be told apart
                c.line([start, (start[0] + dx, start[1] + dy)], INK, has_tip=True, stroke_width=0.9)


def _votes(c: Canvas, at: tuple[float, float], landings: dict[tuple[int, int], int]) -> None:
    for (y, x), n in sorted(landings.items()):
        c.circle((at[0] + (x + 0.5) * _CELL, at[1] + (y + 0.5) * _CELL), 1.1 * n**0.5, RED, fill_opacity=0.8)
