"""Hosts, devices, preemption and progress."""
