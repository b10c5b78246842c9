"""Divide a folder of one folder per class into train/ and test/: every fifth image of a class is for testing.

    python benchmarks/split_folder.py IMAGES/ divided/

The images are linked, not copied; in sorted order those at 0, 5, 10, ... of each class go to test/.
"""

import argparse
from pathlib import Path

TEST_EVERY = 5


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", type=Path, help="CLASS/FILE below it")
    parser.add_argument("out", type=Path, help="folder to make")
    options = parser.parse_args()
    for folder in sorted(path for path in options.images.iterdir() if path.is_dir()):
        for number, file in enumerate(sorted(path for path in folder.iterdir() if path.is_file())):
            part = "train" if number % TEST_EVERY else "test"
            link = options.out / part / folder.name / file.name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file.resolve())


if __name__ == "__main__":
    main()
