#!/usr/bin/env bash
# Start a Slurm cluster of one node, this machine, for tests: bash tests/slurm/up.sh FOLDER
# Debian's packages are installed where they are missing. Needs root. Everything but the configuration lies in FOLDER.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$(realpath -m "$1")
conf=/etc/slurm/slurm.conf # SLURM_CONF would not do: Snakemake's jobstep plugin drops it
host=$(hostname -s)

die() { echo "$*" >&2; exit 1; }

[ "$(id -u)" = 0 ] || die "Starting a Slurm needs root. \`make test SLURM=no\` leaves out the tests that need one."
if [ -e $conf ] && ! grep -q "^ClusterName=apet-test$" $conf; then
    die "$conf is a real cluster's: this would overwrite it."
fi
if scontrol ping 2>/dev/null | grep -q UP; then
    die "A test Slurm runs already: bash tests/slurm/down.sh $(sed -n 's|^StateSaveLocation=\(.*\)/state$|\1|p' $conf)"
fi

packages() (
    command -v apt-get >/dev/null || die "Slurm is not here, and without apt-get it cannot be installed."
    # Packages may not start services, as in Debian's own images: this script starts them, and down.sh stops them.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e $policy ]; then
        trap "rm -f $policy" EXIT
        printf '#!/bin/sh\nexit 101\n' >$policy
        chmod +x $policy
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -qq -y --no-install-recommends slurmctld slurmd slurm-client munge >/dev/null
)

type slurmctld slurmd srun munged >/dev/null 2>&1 || packages
trap '[ $? = 0 ] || bash "$here/down.sh" "$folder"' EXIT
mkdir -p "$folder/state" "$folder/spool"
if ! munge -n >/dev/null 2>&1; then # it runs already where systemd has started it
    install -d -o munge -g munge -m 0755 /run/munge
    [ -s /etc/munge/munge.key ] || runuser -u munge -- mungekey --create
    runuser -u munge -- munged
    ln -sf /run/munge/munged.pid "$folder/munged.pid"
fi

sed -e "s|@HOST@|$host|g" -e "s|@FOLDER@|$folder|g" "$here/slurm.conf.in" >$conf
# Slurm wants device files that are there, and hands them out without opening them.
printf 'Name=gpu File=%s\n' /dev/null /dev/zero /dev/full /dev/random >/etc/slurm/gres.conf

unset SLURM_CONF
slurmctld
slurmd
for _ in $(seq 300); do
    [ "$(sinfo -h -o %T 2>/dev/null | sort -u)" = idle ] && exit 0
    sleep 0.1
done
sinfo -R || true
tail -n 20 "$folder"/slurm{ctld,d}.log
die "The node did not come up."
