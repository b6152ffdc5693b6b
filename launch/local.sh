#!/bin/bash
# Run pipepar on this machine: mpirun starts one rank per GPU, or two ranks without a GPU.
#
#   launch/local.sh MODEL INPUT OUTPUT [OPTION...]
#
# All arguments are passed to `pipepar run`, and its exit status is that of the script. To stop the
# job so that --resume can continue it, send SIGUSR1 to this script (its process becomes mpirun):
# kill -USR1 PID. On SIGTERM, mpirun would kill the ranks at once.
#
# Environment variables:
#   RANKS     number of ranks                                        [one per GPU, else 2]
#   PIPEPAR   the command, such as "apptainer exec my.sif pipepar"               [pipepar]
#   MPIRUN    the launcher with its options                                       [mpirun]
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

# Open MPI binds each of two ranks to a single core. Without binding, pipepar divides the cores
# among the ranks. The first variable is for Open MPI 5, the second for 4. MPICH and Intel MPI do
# not bind by default.
export PRTE_MCA_hwloc_default_binding_policy=${PRTE_MCA_hwloc_default_binding_policy:-none}
export OMPI_MCA_hwloc_base_binding_policy=${OMPI_MCA_hwloc_base_binding_policy:-none}

exec "${mpirun[@]}" -n "$ranks" "${pipepar[@]}" run "$@"
