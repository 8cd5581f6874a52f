"""Benchmarks: `python -m lightning_recall.benchmarks.NAME`.

Each measures one component against a lower bound or a reference implementation and prints a table.
"""
