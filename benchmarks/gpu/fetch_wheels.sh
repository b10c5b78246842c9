#!/usr/bin/env bash
# Fetch the wheels of wheels.txt for Python 3.12 on Linux, on a machine with network; gpu.sh takes the folder.
# Usage: benchmarks/gpu/fetch_wheels.sh FOLDER
set -eu
folder=${1:?usage: fetch_wheels.sh FOLDER}
wheels=$(dirname "$0")/wheels.txt
platforms=()
for tag in manylinux_2_28 manylinux_2_17 manylinux2014; do platforms+=(--platform "${tag}_x86_64"); done
"${PYTHON:-python3}" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
  --python-version 3.12 --implementation cp "${platforms[@]}" --dest "$folder" --requirement "$wheels"
du -sh "$folder"
