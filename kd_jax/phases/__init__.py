"""One file per command; each `run` reads what the phases before it left in the workdir."""

PHASES = ("prepare", "teacher", "cache", "student", "evaluate", "report")  # of a run, in this order
