"""The command line `kd-jax`."""
