"""Manual optimization with everything that automatic optimization does: clipping, accumulation, schedulers, resume."""
