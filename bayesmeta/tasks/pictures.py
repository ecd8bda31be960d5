"""Worlds of cells as text and as small images."""

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

_PIXELS = 16  # the side of a cell
_PAPER, _LINES, _AGENT = (255, 255, 255), (210, 210, 210), (200, 30, 30)
_IDLE = (190, 180, 140)
_INKS = {
    **{"*": (60, 170, 75), "m": (40, 40, 40), "?": (40, 40, 40), "o": (90, 90, 90)},
    **{"a": (0, 114, 178), "b": (204, 121, 167), "c": (240, 200, 50), "d": (86, 180, 233)},
    **dict.fromkeys("efgh", _IDLE),
    **{"1": (0, 114, 178), "2": (213, 94, 0), "3": (204, 121, 167), "4": (0, 158, 115)},
}


@runtime_checkable
class Pictured(Protocol):
    """A family that can draw one of its worlds as a table of characters, among which ``@`` is the agent."""

    def picture(
        self, state: tuple[int, ...], instruction: tuple[int, ...], params: tuple[int, ...]
    ) -> tuple[np.ndarray, str]: ...


def text(cells: np.ndarray, words: str) -> str:
    """The characters row by row, and the words below."""
    return "\n".join([*(" ".join(row) for row in cells.tolist()), words])


def image(cells: np.ndarray) -> UInt8[np.ndarray, "height width 3"]:
    """A square of its own colour for each character, none for ``.``, and a smaller one for the agent."""
    colours = np.array([[_INKS.get(character, _PAPER) for character in row] for row in cells.tolist()], np.uint8)
    pixels = colours.repeat(_PIXELS, 0).repeat(_PIXELS, 1)
    pixels[::_PIXELS] = pixels[:, ::_PIXELS] = _LINES
    edge = _PIXELS // 4
    for row, column in np.argwhere(cells == "@"):
        top, left = row * _PIXELS, column * _PIXELS
        pixels[top + edge : top + _PIXELS - edge, left + edge : left + _PIXELS - edge] = _AGENT
    return pixels
