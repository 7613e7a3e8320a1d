"""Many runs: grids, what of them is lacking, how long that takes, and who runs it."""

from bpl.sweep.local import GridError, Outcome, load_grid, load_stages, seconds_of, sweep

__all__ = ["GridError", "Outcome", "load_grid", "load_stages", "seconds_of", "sweep"]
