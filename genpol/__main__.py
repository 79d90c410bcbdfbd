"""`python -m genpol` is `genpol`."""

from __future__ import annotations

import sys

from genpol.cli import main

if __name__ == "__main__":
    sys.exit(main())
