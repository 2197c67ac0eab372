"""Benchmarks and what they compare with: each measures the real processes, and a bare twin beside them."""
