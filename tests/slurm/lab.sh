#!/usr/bin/env bash
# A throw-away SLURM cluster of one node with two pretended GPUs and no accounting, for tests.
#
#   lab.sh run DIR COMMAND…    start the cluster with its files in DIR, run COMMAND in it, end both
#   lab.sh join DIR COMMAND…   run COMMAND in the cluster that a `run` in DIR keeps up
#
# Needs root and Debian's slurmctld, slurmd, slurm-client and munge; no systemd, no database. Namespaces of its own
# (mounts, processes, network, hostname) keep /etc/slurm, ports and daemons apart from the machine's: there is no
# network inside, as on many compute nodes, and when COMMAND or this script ends the kernel ends all that it started.
set -euo pipefail

usage="usage: $0 run|join DIR COMMAND…"
action=${1:?$usage} folder=$(realpath -m "${2:?$usage}")
shift 2
: "${1:?$usage}"

node=slurmlab

configure() {
  rm -rf "${folder:?}"/{etc,state,spool,log,run,gpus,ready} # nothing of an earlier cluster
  mkdir -p "$folder"/{etc,state,spool,log,run,gpus}
  # SLURM does not open a GPU device, it only counts it; a node with `Count=` and no file would be drained.
  for gpu in 0 1; do mknod "$folder/gpus/nvidia$gpu" c 1 3; done
  echo "127.0.0.1 localhost $node" >"$folder/etc/hosts"
  echo "NodeName=$node Name=gpu Type=test File=$folder/gpus/nvidia[0-1]" >"$folder/etc/gres.conf"
  cat >"$folder/etc/slurm.conf" <<CONF
ClusterName=lab
SlurmctldHost=$node(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
MpiDefault=none
# Without control groups: processes are followed through /proc and a job over its memory is killed by polling.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
# Schedule at once: a test waits for every second.
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
KillWait=5
# A finished job stays visible to squeue this long, seconds.
MinJobAge=300
ReturnToService=2
# More cores and memory than the machine has: jobs are tiny.
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=$node NodeAddr=127.0.0.1 CPUs=8 RealMemory=64000 Gres=gpu:test:2 State=UNKNOWN
PartitionName=cpu Nodes=$node Default=YES DefMemPerCPU=500 MaxTime=60 State=UP
PartitionName=gpu Nodes=$node DefMemPerCPU=500 MaxTime=60 State=UP
SlurmctldPidFile=$folder/run/slurmctld.pid
SlurmdPidFile=$folder/run/slurmd.pid
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.log
CONF
}

start_daemons() {
  ip link set lo up
  ip addr add 127.0.0.2/8 dev lo # SLURM resolves no name while 127.0.0.1 is the only address
  hostname "$node"
  mount --bind "$folder/etc/hosts" /etc/hosts
  # The job step asks for /etc/slurm whatever SLURM_CONF says.
  mount --bind "$folder/etc" /etc/slurm
  mount -t tmpfs tmpfs /run
  install -d -o munge -g munge -m 0755 /run/munge
  install -d -o munge -g munge -m 0700 /run/munge-key
  head -c 1024 /dev/urandom | install -o munge -g munge -m 0400 /dev/stdin /run/munge-key/key
  setpriv --reuid=munge --regid=munge --init-groups munged --key-file=/run/munge-key/key
  slurmctld
  slurmd
}

wait_until_idle() {
  for _ in $(seq 100); do
    [ "$(timeout 5 sinfo --noheader --partition=gpu --format=%t 2>/dev/null)" = idle ] && return
    sleep 0.1
  done
  echo "SLURM did not come up; its logs:" >&2
  tail -n 30 "$folder"/log/*.log >&2
  return 1
}

case $action in
run)
  exec unshare --mount --pid --net --uts --ipc --fork --kill-child --mount-proc --propagation private \
    "$BASH" "$(realpath "$0")" inside "$folder" "$@"
  ;;
inside) # the first process of the namespaces
  configure
  start_daemons
  wait_until_idle
  touch "$folder/ready"
  status=0
  "$@" || status=$?
  exit "$status"
  ;;
join)
  # Seen from inside, the first process of the namespaces has number 1; a folder is used by one cluster at a time.
  for candidate in $(pgrep --full -- "lab.sh inside $folder "); do
    if awk '/^NSpid:/ { found = $NF == 1 } END { exit !found }' "/proc/$candidate/status" 2>/dev/null; then
      exec nsenter --target "$candidate" --mount --pid --net --uts --ipc --wdns="$PWD" -- "$@"
    fi
  done
  echo "no cluster runs in $folder" >&2
  exit 1
  ;;
*)
  echo "$usage" >&2
  exit 2
  ;;
esac
