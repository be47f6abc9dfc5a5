"""Measure models: texts, likelihoods, closeness to the teacher, speed and cost."""
