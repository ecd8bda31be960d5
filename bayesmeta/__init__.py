"""bayesmeta: task adaptation as posterior inference in a hierarchical model.

Importing the package is light: no torch, no environment, no ArviZ, until something of them is used.
Its verbs live in modules of their own name: ``from bayesmeta.train import train``, likewise ``collect``, ``evaluate``.
"""

from typing import Any

__version__ = "0.1.0"

_LAZY = {
    "Context": "bayesmeta.types",
    "Transitions": "bayesmeta.types",
    "Spec": "bayesmeta.types",
    "Explorer": "bayesmeta.types",
    "TaskModel": "bayesmeta.models.task_model",
    "FactorModel": "bayesmeta.models.task_model",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'bayesmeta' has no attribute {name!r}; it offers {sorted(_LAZY)}")
