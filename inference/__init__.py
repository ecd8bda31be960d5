"""Data to belief, one file per procedure."""
