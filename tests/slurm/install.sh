#!/bin/sh
# Install Debian's Slurm where that may be done, and see that a node of it runs a job; fails where not.
set -eu

[ "$(id -u)" = 0 ] || { echo "Slurm: needs root"; exit 1; }
if ! command -v slurmd > /dev/null || ! command -v slurmctld > /dev/null; then
    command -v apt-get > /dev/null || { echo "Slurm: no apt-get"; exit 1; }
    export DEBIAN_FRONTEND=noninteractive
    { timeout 120 apt-get update -qq \
        && timeout 300 apt-get install -y -qq --no-install-recommends munge slurm-wlm; } > /dev/null \
        || { echo "Slurm: cannot be installed"; exit 1; }
fi
folder=$(mktemp -d)
timeout 120 "$(dirname "$0")/one_node.sh" start "$folder" > /dev/null \
    || { echo "Slurm: does not start"; exit 1; }
status=0
SLURM_CONF="$folder/slurm.conf" timeout 60 srun true || { echo "Slurm: runs no job"; status=1; }
timeout 120 "$(dirname "$0")/one_node.sh" stop "$folder"
exit "$status"
