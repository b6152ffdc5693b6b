#!/bin/bash
# A Slurm cluster for tests: daemons of Debian's packages as plain processes, without systemd,
# cgroups or accounting. Its hosts are network namespaces that exist already.
#
#   slurm.sh DIR configure NAME=ADDRESS...   write the configuration; the first host controls
#   slurm.sh DIR controller                  on the first host: start munged and slurmctld
#   slurm.sh DIR node                        on each host: start slurmd
#   slurm.sh DIR ready                       on the first host: wait until jobs can start
#   slurm.sh DIR stop                        on the first host: end all jobs and daemons
#
# DIR is an absolute path and short, since it contains sockets. Clients such as srun and sbatch need
# SLURM_CONF=DIR/slurm.conf.
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
# A requeued job waits until its credentials have expired, by default for 2 minutes.
AuthInfo=socket=$dir/munge.socket,cred_expire=5
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool.%n
# PMIx creates a socket in it, with the same name on each host.
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
    # Slurm initializes cgroups even if they are not used: v2 requires systemd, and autodetection
    # requires mounted cgroups.
    echo "CgroupPlugin=cgroup/v1" >"$dir/cgroup.conf"
    mkdir -p "$dir/state"
    (umask 077 && head -c 1024 /dev/urandom >"$dir/munge.key")
}

controller() {
    munged --force --key-file="$dir/munge.key" --socket="$dir/munge.socket" \
        --pid-file="$dir/munged.pid" --log-file="$dir/munged.log" --seed-file="$dir/munged.seed"
    slurmctld -c
}

# sinfo reports nodes as idle before they can be reached, so run a job.
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
