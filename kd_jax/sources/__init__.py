"""Sources: raw examples by split, from files, datasets, Debian's packages, or made up."""
