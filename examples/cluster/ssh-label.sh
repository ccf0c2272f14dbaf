#!/bin/bash
# Workers on machines that are reached by ssh. They share the current folder, with the run and its images.
#   HOSTS="node1 node2 node3" RUN=runs/photos bash ssh-label.sh
set -uo pipefail
: "${HOSTS:?are the names of the machines, with spaces between}"
: "${RUN:?is the run directory, on a disk that all machines share}"

# 75: the run will label later. The worker is started again until the labels of the last student are made.
worker="cd $(printf %q "$PWD") && while :; do
  noisystudent label $(printf %q "$RUN") --worker; code=\$?
  [ \$code -eq 75 ] || exit \$code; sleep ${PAUSE:-60}
done"
workers=()
for host in $HOSTS; do
  ssh "$host" "$worker" &
  workers+=($!)
done
failed=0
for each in "${workers[@]}"; do
  wait "$each" || failed=1
done
exit "$failed"
