"""Files, manifests, checkpoints and locks of a workdir."""
