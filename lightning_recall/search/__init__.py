"""Exact search in blocks: ranks, nearest neighbours, re-ranking and query expansion. Plain torch."""
