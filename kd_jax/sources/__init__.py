"""Sources: raw examples by split, from files, datasets, Debian's packages, or made up."""

from kd_jax.sources.base import Source
from kd_jax.sources.debian import Debian
from kd_jax.sources.directions import Directions
from kd_jax.sources.files import Files
from kd_jax.sources.tfds import Tfds
from kd_jax.sources.toy import Toy

__all__ = ["Debian", "Directions", "Files", "Source", "Tfds", "Toy"]
