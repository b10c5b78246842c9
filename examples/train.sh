#!/usr/bin/env bash
# The whole way on one machine: check, train, evaluate, report.   Usage: examples/train.sh IMAGES/ [LABELS.csv]
# Run it again after an interruption: training continues where it stopped.
set -eu
images=$1
labels=${2:-}
run=runs/$(basename "$images")

byol check "$images"
byol train "$images" -o "$run"
byol eval "$run" ${labels:+--labels "$labels"}
byol report "$run" ${labels:+--labels "$labels"}
