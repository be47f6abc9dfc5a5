"""python -m kd_jax"""

import os
import sys

from kd_jax.cli.main import main

code = main(sys.argv[1:])
if code:
    # The one line is said; threads of a library that was cut off must not add tracebacks to it.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
