#!/usr/bin/env bash
#SBATCH --job-name=divsel
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=1
#SBATCH --time=24:00:00
#SBATCH --output=divsel-%j.log
#SBATCH --requeue
#
# Runs a divsel job on nodes allocated by Slurm: Ray's head on the first node, a worker on each of the others. All of them end
# with the job. A job that is submitted again or requeued resumes from its run folder.
#
#   sbatch jobs/slurm.sh jobs/configs/alpaca.yaml --out /shared/runs/alpaca pool.data=/shared/data/alpaca_data.json
#
# Accepts the arguments of `divsel run`. Submit it from a folder that every node mounts, with `divsel` and `ray` on the PATH.
# Options given to sbatch before the script (--nodes=8 --partition=...) override the lines above.
#
# Ray executes any code that is sent to its ports and listens on all addresses of a node, and the users of a cluster share its
# network. So every call needs a token, which is generated for this job and removed with it, and Ray's job server is not started.
# Nodes find each other by their first IPv4 address; if that is not the private one, change `address_of`.
set -euo pipefail

[ $# -ge 1 ] || { echo "usage: sbatch jobs/slurm.sh CONFIG --out SHARED_FOLDER [KEY=VALUE]..." >&2; exit 2; }

port=$((20000 + SLURM_JOB_ID % 10000))
cpus=${SLURM_CPUS_PER_TASK:-$SLURM_CPUS_ON_NODE}
gpus=${SLURM_GPUS_ON_NODE:-0}
state=$PWD/.divsel-$SLURM_JOB_ID
declare -A temporary=()

started=()
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")

step=(srun --overlap --nodes=1 --ntasks=1 --cpus-per-task="$cpus")
on() { "${step[@]}" --nodelist="$1" "${@:2}"; }

address_of() { on "$1" hostname -I | awk '{ for (i = 1; i <= NF; i++) if ($i !~ /:/) { print $i; next } }'; }

start() { # NODE ADDRESS OPTION...
  # In the node's TMPDIR: Ray's sockets are nested deeply in this folder, and their paths must be short.
  temporary[$1]=$(on "$1" mktemp -d --tmpdir ray-XXXXXX)
  # Not with `on`: the process to end with the job must be srun itself, not a shell around it.
  "${step[@]}" --nodelist="$1" ray start --block --disable-usage-stats --node-ip-address="$2" --num-cpus="$cpus" \
    --num-gpus="$gpus" --temp-dir="${temporary[$1]}" "${@:3}" &
  started+=($!)
}

await_head() {
  for _ in {1..120}; do
    (exec 3<> "/dev/tcp/$head/$port") 2> /dev/null && return
    sleep 1
  done
  echo "divsel: Ray's head did not start on ${nodes[0]} ($head:$port)" >&2
  return 1
}

end() {
  trap - EXIT TERM INT
  # Workers first: they deregister from the head.
  for those in "${started[*]:1}" "${started[*]:0:1}"; do
    # shellcheck disable=SC2086
    [ -z "$those" ] || { kill $those; wait $those; } 2> /dev/null || true
  done
  for node in "${!temporary[@]}"; do on "$node" rm -rf "${temporary[$node]}" || true; done
  rm -rf "$state"
}
trap end EXIT
trap 'exit 143' TERM INT

(umask 077 && mkdir -p "$state" && python3 -c 'import secrets; print(secrets.token_hex(32), end="")' > "$state/token")
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$state/token"

head=$(address_of "${nodes[0]}")
start "${nodes[0]}" "$head" --head --port="$port" --include-dashboard=false
await_head
for node in "${nodes[@]:1}"; do
  start "$node" "$(address_of "$node")" --address="$head:$port"
done

everything=CPU=$((cpus * ${#nodes[@]}))
[ "$gpus" = 0 ] || everything+=,GPU=$((gpus * ${#nodes[@]}))
on "${nodes[0]}" env RAY_ADDRESS="$head:$port" divsel run "$@" --wait-for "$everything"
