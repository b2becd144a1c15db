"""Figures of speed and memory, each beside a reference measured in the same process; run ``python -m benchmarks``."""
