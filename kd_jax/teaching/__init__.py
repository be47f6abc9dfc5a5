"""The trained teacher, its signals on disk, and its pseudo-targets."""
