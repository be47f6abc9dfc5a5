"""One file per command; each `run` reads what the phases before it left in the workdir."""

PHASES = ("prepare", "teacher", "cache", "student", "evaluate", "report")  # of a run, in this order
OF_ONE_HOST = ("prepare", "report")  # where there are several, the first does them
