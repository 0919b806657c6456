#!/usr/bin/env bash
# Stop what up.sh started, jobs first, and take its configuration away: bash tests/slurm/down.sh FOLDER
set -euo pipefail
folder=$(realpath -m "$1")
conf=/etc/slurm/slurm.conf

ours() { grep -qs "^StateSaveLocation=$folder/state$" $conf; }

if ours; then
    scancel --quiet --user=root || true
    for _ in $(seq 100); do
        [ -n "$(squeue -h 2>/dev/null)" ] || break
        sleep 0.1
    done
fi
for daemon in slurmd slurmctld munged; do
    [ -s "$folder/$daemon.pid" ] || continue
    pid=$(cat "$folder/$daemon.pid")
    kill "$pid" 2>/dev/null || continue
    while kill -0 "$pid" 2>/dev/null; do sleep 0.1; done
done
! ours || rm -f $conf /etc/slurm/gres.conf
