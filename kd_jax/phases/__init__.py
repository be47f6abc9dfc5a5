"""One file per command; each `run` reads what the phases before it left in the workdir."""
