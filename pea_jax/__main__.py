"""`python -m pea_jax` is `pea-jax`."""

import sys

from pea_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
