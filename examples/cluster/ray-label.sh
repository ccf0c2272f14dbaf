#!/bin/bash
# Workers as tasks of a Ray cluster. Without RAY_ADDRESS, Ray starts on this machine alone.
#   RAY_ADDRESS=head:6379 RUN=runs/photos bash ray-label.sh
# Elsewhere: `ray start --head` on one machine, `ray start --address=head:6379` on the others.
set -uo pipefail
: "${RUN:?is the run directory, on a disk that all machines share}"

noisystudent label "$RUN" --engine ray
code=$?
while [ "$code" -eq 75 ]; do # the run has nothing to label yet
  sleep "${PAUSE:-60}"
  noisystudent label "$RUN" --engine ray
  code=$?
done
exit "$code"
