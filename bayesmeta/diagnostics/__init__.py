"""What the beliefs of an agent or of any inference procedure are worth: results for ArviZ, verdicts, a report.

Nothing heavy is imported until something of it is used; only :mod:`bayesmeta.diagnostics.arviz` imports ArviZ.
"""

from typing import Any

_LAZY = {
    "check": "bayesmeta.diagnostics.checking",
    "diagnose": "bayesmeta.diagnostics.run",
    "results_of": "bayesmeta.diagnostics.run",
    "results_from": "bayesmeta.diagnostics.export",
    "save": "bayesmeta.diagnostics.results",
    "load": "bayesmeta.diagnostics.results",
    "at": "bayesmeta.diagnostics.results",
    "to_arviz": "bayesmeta.diagnostics.arviz",
    "summary": "bayesmeta.diagnostics.arviz",
    "verdicts": "bayesmeta.diagnostics.verdict",
    "write_report": "bayesmeta.diagnostics.report",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'bayesmeta.diagnostics' has no attribute {name!r}; it offers {sorted(_LAZY)}")
