"""Speed and memory, each script a table for docs/results.md; run one with ``python -m benchmarks.NAME``."""
