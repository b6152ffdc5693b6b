#!/bin/bash
# Install Debian's Slurm for the tests. Requires root, and a container or host without a running
# systemd, which would start the daemons of the packages.
set -euo pipefail
packages=(slurmctld slurmd slurm-client munge libpmix-dev)

refuse() {
    echo "$1; install ${packages[*]}" >&2
    exit 1
}

[ "$(id -u)" = 0 ] || refuse "not root"
command -v apt-get >/dev/null || refuse "no apt-get"
[ ! -d /run/systemd/system ] || refuse "systemd would start Slurm's daemons"
export DEBIAN_FRONTEND=noninteractive
install() {
    timeout 90 apt-get -qq -y --no-install-recommends -o DPkg::Lock::Timeout=60 \
        install "${packages[@]}" >/dev/null
}
# In a container the list of packages is often missing or too old.
install 2>/dev/null || { timeout 60 apt-get -qq update && install; } || refuse "apt-get failed"
