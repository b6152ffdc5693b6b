#!/bin/bash
# Run pipepar as a job of PBS Professional, OpenPBS or Torque: mpirun starts the ranks.
#
#   qsub -l select=2:ncpus=16:mpiprocs=2 -l walltime=1:00:00 -- \
#       $PWD/launch/pbs.sh MODEL INPUT OUTPUT [OPTION...]
#   qsub -l nodes=2:ppn=2 -v MODEL=./model,INPUT=in.txt,OUTPUT=out.npy launch/pbs.sh
#
# All arguments are passed to `pipepar run`. For a PBS that passes no arguments to scripts, set
# MODEL, INPUT, OUTPUT and OPTIONS in the environment, as in the second command. PBS sends no signal
# before the time limit, so set STOP_AFTER: the job then saves its results and exits with status 75.
# A PBS job cannot requeue itself without operator rights, so submit it again with --resume.
#
# Environment variables:
#   STOP_AFTER  seconds after which to stop                                      [never]
#   PIPEPAR     the command, such as "apptainer exec my.sif pipepar"           [pipepar]
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

# Open MPI binds each of two ranks to a single core. Without binding, pipepar divides the job's
# cores among the ranks.
export PRTE_MCA_hwloc_default_binding_policy=${PRTE_MCA_hwloc_default_binding_policy:-none}
export OMPI_MCA_hwloc_base_binding_policy=${OMPI_MCA_hwloc_base_binding_policy:-none}

# The file has one line per rank, with its host. An MPI built without PBS's tm does not read it
# itself.
ranks=$(grep -c . "$PBS_NODEFILE")
"${mpirun[@]}" --hostfile "$PBS_NODEFILE" -n "$ranks" "${pipepar[@]}" run "$@" &
job=$!
# mpirun forwards USR1 to every rank, but on TERM it kills them at once.
trap 'kill -USR1 "$job"' USR1 TERM
if [ -n "${STOP_AFTER:-}" ]; then # tail exits when this script does
    {
        timeout "$STOP_AFTER" tail --pid=$$ -f /dev/null
        [ $? != 124 ] || kill -USR1 $$
    } &
fi
while kill -0 "$job" 2>/dev/null; do wait "$job"; done # wait returns early on a signal
wait "$job"
exit
