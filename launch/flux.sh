#!/bin/bash
# Run pipepar as a Flux job: flux run starts the same number of ranks on each node.
#
#   RANKS_PER_NODE=4 flux batch --nodes=2 --exclusive --time-limit=1h \
#       launch/flux.sh MODEL INPUT OUTPUT [OPTION...]
#
# All arguments are passed to `pipepar run`, and its exit status is that of the job. Shortly before
# the time limit, the job saves its results and exits with status 75; submit it again with --resume.
#
# Environment variables:
#   RANKS_PER_NODE  number of ranks per node                                             [1]
#   STOP_BEFORE     time before the limit at which to stop, such as 300s or 5m        [120s]
#   PMI             the interface between Flux and the MPI: pmix for Open MPI 5 (needs the
#                   plugin flux-pmix), simple for MPICH and Intel MPI                 [pmix]
#   PIPEPAR         the command, such as "apptainer exec my.sif pipepar"           [pipepar]
set -euo pipefail

if [ $# = 0 ] || [ -z "${FLUX_URI:-}" ]; then
    sed -n '2,/^set /{/^#/p}' "$0" >&2
    exit 2
fi
read -ra pipepar <<<"${PIPEPAR:-pipepar}"
nodes=$(flux getattr size)

# Each rank gets an equal share of the node's cores. Flux sends the signal directly to the ranks.
exec flux run --nodes="$nodes" --tasks-per-node="${RANKS_PER_NODE:-1}" --exclusive \
    -o pmi="${PMI:-pmix}" -o cpu-affinity=per-task --signal=USR1@"${STOP_BEFORE:-120s}" \
    "${pipepar[@]}" run "$@"
