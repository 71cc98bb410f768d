#!/usr/bin/env bash
# Slurm: run `sbatch deploy/slurm.sh` in the repository's root. It makes a cluster for one sweep; submitted again, it carries
# on. The nodes must share the home folder, which holds this repository, its environment (`make .venv/laptop`) and Ray's
# token.
# Replace every SET_…; `raysweep doctor --cluster deploy/slurm.sh` lists what is missing.
#SBATCH --partition=SET_PARTITION
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@300
#SBATCH --job-name=raysweep
set -euo pipefail
export RAYSWEEP_STORAGE=SET_STORAGE # a folder of the parallel file system that all nodes share
SPACE=search_spaces/table5.yaml

cd "$SLURM_SUBMIT_DIR"
export PATH=$PWD/.venv/bin:$PATH RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
[ -e ~/.ray/auth_token ] || ray get-auth-token --generate >/dev/null
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
address=$(srun --nodes=1 --ntasks=1 --nodelist="${nodes[0]}" hostname --ip-address | awk '{print $1}')
port=$((20000 + SLURM_JOB_ID % 10000)) # two jobs may share a node
ray_on() { srun --nodes=1 --ntasks=1 --overlap --nodelist="$1" ray start --block --object-store-memory=500000000 "${@:2}"; }

ray_on "${nodes[0]}" --head --node-ip-address="$address" --port="$port" --dashboard-host=127.0.0.1 &
until ray health-check --address "$address:$port" >/dev/null 2>&1; do sleep 2; done
for node in "${nodes[@]:1}"; do ray_on "$node" --address="$address:$port" & done

# Slurm's signal comes five minutes before the end. The driver then writes checkpoints of what is being trained.
RAY_ADDRESS=$address:$port python -m raysweep.run "$SPACE" &
driver=$!
trap 'kill -TERM $driver' TERM
wait $driver || wait $driver
