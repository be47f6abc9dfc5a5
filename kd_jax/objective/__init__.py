"""The training objective: terms, their checks, and the fused head."""
