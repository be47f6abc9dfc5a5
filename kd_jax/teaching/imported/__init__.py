"""Signals from files of log-probabilities that another program wrote."""
