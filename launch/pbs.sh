#!/bin/bash
# pipepar as a job of PBS Professional, OpenPBS or Torque: mpirun starts the ranks.
#
#   qsub -l select=2:ncpus=16:mpiprocs=2 -l walltime=1:00:00 -- \
#       $PWD/launch/pbs.sh MODEL INPUT OUTPUT [OPTION...]
#   qsub -l nodes=2:ppn=2 -v MODEL=./model,INPUT=in.txt,OUTPUT=out.npy launch/pbs.sh
#
# Everything after the script's name goes to `pipepar run`; the second way, for a PBS that hands on no
# arguments, takes MODEL, INPUT, OUTPUT and OPTIONS from the environment. PBS gives no warning before
# the time is up, so set STOP_AFTER: then the job stops in order with status 75. It cannot requeue
# itself (that is an operator's right): submit it again with --resume.
#
# Environment:
#   STOP_AFTER  stop in order after so many seconds                              [never]
#   PIPEPAR     the command, as "apptainer exec my.sif pipepar"                [pipepar]
#   MPIRUN      the launcher with its options                                   [mpirun]
#
#PBS -N pipepar
#PBS -j oe
set -uo pipefail

if [ $# = 0 ] && [ -n "${MODEL:-}" ]; then
    read -ra options <<<"${OPTIONS:-}"
    set -- "$MODEL" "${INPUT:?is not set}" "${OUTPUT:?is not set}" ${options[@]+"${options[@]}"}
fi
if [ $# = 0 ] || [ -z "${PBS_NODEFILE:-}" ]; then
    sed -n '2,/^#PBS/{/^# /p}' "$0" >&2
    exit 2
fi
read -ra pipepar <<<"${PIPEPAR:-pipepar}"
read -ra mpirun <<<"${MPIRUN:-mpirun}"
cd "${PBS_O_WORKDIR:-.}" || exit 1

# Open MPI binds each of two ranks to a single core. Unbound, ranks share out what the job has.
export PRTE_MCA_hwloc_default_binding_policy=${PRTE_MCA_hwloc_default_binding_policy:-none}
export OMPI_MCA_hwloc_base_binding_policy=${OMPI_MCA_hwloc_base_binding_policy:-none}

# A host stands in the file once for each rank. An MPI built without PBS's tm needs to be told.
ranks=$(grep -c . "$PBS_NODEFILE")
"${mpirun[@]}" --hostfile "$PBS_NODEFILE" -n "$ranks" "${pipepar[@]}" run "$@" &
job=$!
# mpirun hands USR1 on to every rank, but on TERM it ends them at once.
trap 'kill -USR1 "$job"' USR1 TERM
if [ -n "${STOP_AFTER:-}" ]; then # tail ends with this script
    {
        timeout "$STOP_AFTER" tail --pid=$$ -f /dev/null
        [ $? != 124 ] || kill -USR1 $$
    } &
fi
while kill -0 "$job" 2>/dev/null; do wait "$job"; done # a signal ends a wait
wait "$job"
exit
