"""Where the scripts of the documentation are found, and `pages.py`, which examines the pages."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "scripts"))
sys.path.append(str(Path(__file__).parent))
