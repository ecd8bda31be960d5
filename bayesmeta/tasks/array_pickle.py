"""Reading a pickled dictionary of byte arrays without letting the file run anything.

Unpickling calls whatever the file names. Here the few names that a pickled numpy array consists of stand for classes of
our own that only keep data, and every other name is refused: no code of numpy or of anyone else is reached.
"""

import pickle
from pathlib import Path
from typing import IO, Any

import numpy as np

_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")
_NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")


def load_arrays(path: Path) -> dict[str, Any]:
    """The dictionary in the file: its uint8 arrays (read only), and lists, dictionaries, numbers and strings.

    Files of Python 2 and 3 are read. Raises ValueError for anything else.
    """
    try:
        with path.open("rb") as file:
            found = _unpickler(file).load()
        return {key: value.array() if hasattr(value, "array") else value for key, value in found.items()}
    except Exception as error:  # what a damaged or hostile file raises is anyone's guess
        raise ValueError(
            f"{path}: expected a pickled dictionary of uint8 arrays, lists and strings, got "
            f"{type(error).__name__}: {error}"
        ) from error


def _unpickler(file: IO[bytes]) -> pickle.Unpickler:
    # The classes are made anew for each file, so that a file that changes them changes nothing that lasts.
    class Dtype:
        def __init__(self, name: str, *rest: Any) -> None:
            self.name = name

        def __setstate__(self, state: Any) -> None:
            pass

    class Array:
        def __setstate__(self, state: tuple) -> None:
            _, self.shape, self.dtype, self.fortran, self.data = state

        def array(self) -> np.ndarray:
            if self.dtype.name not in ("u1", "|u1", "uint8"):
                raise ValueError(f"an array of {self.dtype.name}")
            data = self.data.encode("latin1") if isinstance(self.data, str) else self.data  # Python 2 wrote the latter
            return np.frombuffer(data, np.uint8).reshape(self.shape, order="F" if self.fortran else "C")

    def reconstruct(*args: Any) -> Array:
        return Array()

    def frombuffer(data: Any, dtype: Dtype, shape: tuple[int, ...], order: str, *rest: Any) -> Array:
        made = Array()
        made.__setstate__((1, shape, dtype, order == "F", data))
        return made

    def encode(text: str, codec: str) -> bytes:
        if codec != "latin1":
            raise ValueError(f"the codec {codec}")
        return text.encode("latin1")

    known: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): Array,
        ("numpy", "dtype"): Dtype,
        ("_codecs", "encode"): encode,
        **{(module, "_reconstruct"): reconstruct for module in _MULTIARRAY},
        **{(module, "_frombuffer"): frombuffer for module in _NUMERIC},
    }

    class Restricted(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if (module, name) not in known:
                raise ValueError(f"the name {module}.{name}, which is refused")
            return known[module, name]

    return Restricted(file, encoding="latin1")
