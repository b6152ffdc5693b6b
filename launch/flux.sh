#!/bin/bash
# pipepar as a Flux job: flux run starts the same number of ranks on each node.
#
#   RANKS_PER_NODE=4 flux batch --nodes=2 --exclusive --time-limit=1h \
#       launch/flux.sh MODEL INPUT OUTPUT [OPTION...]
#
# Everything after the script's name goes to `pipepar run`; the exit status is its own. Before its time
# is up the job stops in order with status 75; submit it again with --resume.
#
# Environment:
#   RANKS_PER_NODE  how many ranks on each node                                          [1]
#   STOP_BEFORE     how long before the end to stop, as 300s or 5m                    [120s]
#   PMI             how Flux speaks to the MPI: pmix for Open MPI 5 (the plugin flux-pmix),
#                   simple for MPICH and Intel MPI                                    [pmix]
#   PIPEPAR         the command, as "apptainer exec my.sif pipepar"                [pipepar]
set -euo pipefail

if [ $# = 0 ] || [ -z "${FLUX_URI:-}" ]; then
    sed -n '2,/^set /{/^#/p}' "$0" >&2
    exit 2
fi
read -ra pipepar <<<"${PIPEPAR:-pipepar}"
nodes=$(flux getattr size)

# Each rank gets its share of the node's cores. Flux sends the signal to the ranks themselves.
exec flux run --nodes="$nodes" --tasks-per-node="${RANKS_PER_NODE:-1}" --exclusive \
    -o pmi="${PMI:-pmix}" -o cpu-affinity=per-task --signal=USR1@"${STOP_BEFORE:-120s}" \
    "${pipepar[@]}" run "$@"
