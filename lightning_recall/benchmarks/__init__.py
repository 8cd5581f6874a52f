"""Benchmarks: `python -m lightning_recall.benchmarks.NAME` measures, beside a bound or a peer, and prints one table."""
