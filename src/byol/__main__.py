"""python -m byol ...: the command, also under torchrun."""

import sys

from byol.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
