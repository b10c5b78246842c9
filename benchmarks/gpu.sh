#!/usr/bin/env bash
# All benchmarks, the GPU tests and the accuracy runs on one machine without network, in parts:
#   benchmarks/gpu.sh RESULTS [WHEELS] [--cifar10 FOLDER] [--minutes 8] [--only PART,PART] [--retry]
#   benchmarks/gpu.sh RESULTS --tiny --device cpu      # every part in small, to see that it works
# Call it until it exits with 0 (all done) or 1 (all tried, some failed); 3 means that parts remain.
# WHEELS: what benchmarks/gpu/fetch_wheels.sh fetched. RESULTS/work is not worth keeping, the rest is.
set -eu
exec "${PYTHON:-python3}" "$(dirname "$0")/gpu/parts.py" "$@"
