"""Tasks: text to token ids, settings of generation, and metrics."""
