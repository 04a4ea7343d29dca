"""``python -m vtskip``: the same program as ``vtskip``."""

import sys

from vtskip.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
