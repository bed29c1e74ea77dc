#!/usr/bin/env bash
# SLURM and OpenMPI from Debian or Ubuntu, for the slow tests that start real clusters of one machine; as root.
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends slurm-wlm munge openmpi-bin iproute2
