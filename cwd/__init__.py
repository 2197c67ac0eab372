"""cwd serves many neural networks from a few devices; this package root is the thin client and loads no torch, no numba."""

__version__ = "0.1.0"
