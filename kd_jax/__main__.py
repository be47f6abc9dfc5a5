"""python -m kd_jax"""

import sys

from kd_jax.main import main

sys.exit(main(sys.argv[1:]))
