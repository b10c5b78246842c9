"""The classic entry point: `python run.py` trains as config.yaml says, then evaluates.

python run.py                                   # config.yaml
python run.py my.yaml trainer.max_epochs=80     # another file, one value changed
"""

import sys

from byol.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))
