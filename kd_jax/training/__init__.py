"""Training: the step as pure functions, the loop, and its metrics."""
