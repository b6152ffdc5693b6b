#!/bin/bash
# A Slurm cluster of a test: daemons of Debian's packages as plain processes, without systemd,
# cgroups or accounting. Every host it has is a network namespace that somebody else made.
#
#   cluster.sh DIR configure NAME=ADDRESS...   write the configuration; the first host controls
#   cluster.sh DIR controller                  on the first host: start munged and slurmctld
#   cluster.sh DIR node                        on every host: start slurmd
#   cluster.sh DIR ready                       on the first host: wait until jobs can start
#   cluster.sh DIR stop                        on the first host: end every job and daemon
#
# DIR is absolute and short, since sockets lie below it; SLURM_CONF=DIR/slurm.conf leads srun,
# sbatch and the others there.
set -euo pipefail
dir=$1 verb=$2
shift 2
export SLURM_CONF=$dir/slurm.conf PATH=$PATH:/usr/sbin:/sbin

configure() {
    local controller=$1 place names=()
    cat >"$SLURM_CONF" <<END
ClusterName=test
SlurmctldHost=${controller%%=*}(${controller##*=})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A requeued job waits until its credentials have expired: 2 minutes, unless told otherwise.
AuthInfo=socket=$dir/munge.socket,cred_expire=5
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool.%n
# PMIx puts a socket below it, under a name that every host would use.
TmpFS=$dir/tmp.%n
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.%n.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.%n.log
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=1
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
KillWait=3
END
    for place in "$@"; do
        names+=("${place%%=*}")
        echo "NodeName=${place%%=*} NodeAddr=${place##*=} CPUs=8 RealMemory=2000" >>"$SLURM_CONF"
        mkdir -p "$dir/spool.${place%%=*}" "$dir/tmp.${place%%=*}"
    done
    echo "PartitionName=main Nodes=$(IFS=,; echo "${names[*]}") Default=YES" >>"$SLURM_CONF"
    # Even unused it is set up: v2 would want systemd, and autodetection a mounted tree.
    echo "CgroupPlugin=cgroup/v1" >"$dir/cgroup.conf"
    mkdir -p "$dir/state"
    (umask 077 && head -c 1024 /dev/urandom >"$dir/munge.key")
}

controller() {
    munged --force --key-file="$dir/munge.key" --socket="$dir/munge.socket" \
        --pid-file="$dir/munged.pid" --log-file="$dir/munged.log" --seed-file="$dir/munged.seed"
    slurmctld -c
}

# sinfo calls nodes idle before they can be reached, so what counts is that a job has run.
ready() {
    local nodes
    nodes=$(grep -c ^NodeName= "$SLURM_CONF")
    for _ in $(seq 100); do
        if [ "$(sinfo -h -N -t idle -o %N 2>/dev/null | wc -l)" = "$nodes" ] &&
            timeout 10 srun -Q -N"$nodes" -n"$nodes" true 2>/dev/null; then
            return
        fi
        sleep 0.2
    done
    sinfo -N -o "%N %T %E" >&2
    tail -n 5 "$dir"/*.log >&2
    return 1
}

stop() {
    scancel --user=root --full --quiet 2>/dev/null || true
    for _ in $(seq 30); do
        [ -n "$(squeue -h 2>/dev/null)" ] || break
        sleep 0.1
    done
    scontrol shutdown || true
    for _ in $(seq 30); do
        [ -e "$dir/slurmctld.pid" ] || break
        sleep 0.1
    done
    kill "$(<"$dir/munged.pid")"
}

case $verb in
    configure) configure "$@" ;;
    controller) controller ;;
    node) slurmd -N "$(hostname)" ;;
    ready) ready ;;
    stop) stop ;;
    *) echo "cluster.sh: no such command: $verb" >&2; exit 2 ;;
esac
