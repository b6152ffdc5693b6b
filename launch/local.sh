#!/bin/bash
# pipepar on this machine: mpirun starts one rank for each GPU, or two on the processor.
#
#   launch/local.sh MODEL INPUT OUTPUT [OPTION...]
#
# Everything after the script's name goes to `pipepar run`; the exit status is its own. To stop in
# order, and continue later with --resume:  kill -USR1 PID  (of this script, which mpirun takes over;
# on TERM mpirun would end the ranks at once).
#
# Environment:
#   RANKS     how many ranks                              [one for each GPU, else 2]
#   PIPEPAR   the command, as "apptainer exec my.sif pipepar"    [pipepar]
#   MPIRUN    the launcher with its options                      [mpirun]
set -euo pipefail

if [ $# = 0 ]; then
    sed -n '2,/^set /{/^#/p}' "$0" >&2
    exit 2
fi
read -ra pipepar <<<"${PIPEPAR:-pipepar}"
read -ra mpirun <<<"${MPIRUN:-mpirun}"
gpus=0
if command -v nvidia-smi >/dev/null; then
    gpus=$(nvidia-smi --list-gpus 2>/dev/null | grep -c ^GPU || true)
fi
ranks=${RANKS:-$((gpus > 0 ? gpus : 2))}

# Open MPI binds each of two ranks to a single core. Unbound, ranks share all cores out themselves.
# The first name is Open MPI 5's, the second 4's; MPICH and Intel MPI do not bind unless asked.
export PRTE_MCA_hwloc_default_binding_policy=${PRTE_MCA_hwloc_default_binding_policy:-none}
export OMPI_MCA_hwloc_base_binding_policy=${OMPI_MCA_hwloc_base_binding_policy:-none}

exec "${mpirun[@]}" -n "$ranks" "${pipepar[@]}" run "$@"
