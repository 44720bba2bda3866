#!/bin/bash
# Train on a cluster with OAR, from one GPU to several nodes, through as many walltimes as it takes:
#
#   oarsub -S ./run_oar.sh                                                         # the settings below
#   oarsub -S "./run_oar.sh runs/unet --model unet --data /data/drone"             # a folder, train.py's flags
#   oarsub -S -l /nodes=2/gpu=4,walltime=12:00:00 ./run_oar.sh
#
#OAR -n segmentation
#OAR -l /nodes=1/gpu=1,walltime=04:00:00
#OAR -t besteffort
#OAR -t idempotent
#OAR --checkpoint 120

# Settings
OUT=${1:-runs/segformer}                          # the run's folder; its log is log.JOB.txt there
FLAGS=("${@:2}")                                  # train.py's, unless they are in the command
[ ${#FLAGS[@]} -gt 0 ] || FLAGS=(--model segformer)
PYTHON=$PWD/.venv/bin/python                      # the same path on all nodes; python from PATH if it is not there
RANKS=                                            # processes a node; empty: one a GPU that OAR gave, at least one
GRACE=90                                          # seconds to wait for the save, less than --checkpoint above
PASS=(PATH LD_LIBRARY_PATH XDG_CACHE_HOME TORCH_HOME OMP_NUM_THREADS "${!NCCL_@}" "${!GLOO_@}")  # to all nodes

# OAR sends SIGUSR2 to this script only, 120 s before the walltime or before a besteffort job is preempted. It is passed
# on to every rank, not to torchrun: the ranks agree on a step, save, leave the file `interrupted` and end with 0.
# Exit code 99 then makes OAR submit the job again, and --resume goes on.
signalled=
trap 'signalled=${signalled:-$SECONDS}' USR2 TERM INT

[ -x "$PYTHON" ] || PYTHON=$(command -v python3)
mkdir -p "$OUT" || exit 2
exec > "$OUT/log.$OAR_JOB_ID.txt" 2>&1 < /dev/null
mapfile -t nodes < <(awk '!seen[$0]++' "$OAR_NODEFILE")    # the first is this one
port=$((20000 + OAR_JOB_ID % 10000))                       # two jobs on a node do not meet
pid_file=/tmp/segmentation.$OAR_JOB_ID.pid                 # on each node: torchrun's
echo "job $OAR_JOB_ID on ${nodes[*]}: $OUT ${FLAGS[*]}"

gpus_of() { # NODE: how many GPUs of it are in this job
    grep "network_address = '$1'" "$OAR_RESOURCE_PROPERTIES_FILE" | grep -o "gpudevice = '[0-9]*'" | sort -u | wc -l
}
on() { # NODE COMMAND: run a shell command there, where this script stands
    if [ "$1" = "${nodes[0]}" ]; then exec bash -c "$2"; fi
    exec oarsh "$1" "$(printf 'cd %q && exec bash -c %q' "$PWD" "$2")" < /dev/null
}
launch() { # RANK NODE
    local gpus ranks device=() variables=() name
    gpus=$(gpus_of "$2")
    ranks=${RANKS:-$gpus}
    [ "$ranks" -gt 0 ] || ranks=1
    [ "$gpus" -eq 0 ] || device=(--device cuda)    # or a driver that torch cannot use means a training on the CPU
    for name in "${PASS[@]}"; do [ -z "${!name}" ] || variables+=("$name=${!name}"); done
    on "$2" "echo \$\$ > $pid_file; exec $(printf '%q ' env "${variables[@]}" "$PYTHON" -m torch.distributed.run \
        --nnodes=${#nodes[@]} --node-rank="$1" --nproc-per-node="$ranks" --master-addr="${nodes[0]}" \
        --master-port=$port train.py "${device[@]}" "${FLAGS[@]}" --out "$OUT" --resume)"
}
everywhere() { # COMMAND: with $pid, torchrun's on each node
    local node
    for node in "${nodes[@]}"; do (on "$node" "pid=\$(cat $pid_file) && $1") & others+=($!); done 2> /dev/null
}

rm -f "$OUT/interrupted"                           # of the job before: this one may fail before train.py removes it
started=() others=() failed=0 forwarded=-9
for rank in "${!nodes[@]}"; do
    launch "$rank" "${nodes[rank]}" &
    started+=($!)
done
while [ ${#started[@]} -gt 0 ]; do
    sleep 1
    left=()
    for process in "${started[@]}"; do
        if [ -d "/proc/$process" ]; then left+=("$process"); continue; fi
        wait "$process"
        code=$?
        if [ $code -ne 0 ] && [ $failed -eq 0 ]; then
            failed=$code
            everywhere 'kill -TERM $pid'   # a node that failed leaves no others waiting
        fi
    done
    started=("${left[@]}")
    [ -n "$signalled" ] || continue
    [ $((SECONDS - signalled)) -lt $GRACE ] || break
    if [ $((SECONDS - forwarded)) -ge 5 ] && [ ! -e "$OUT/interrupted" ]; then   # again: starting ranks miss the first
        forwarded=$SECONDS
        everywhere 'pkill -USR2 -P $pid'
    fi
done
wait "${others[@]}" 2> /dev/null

if [ -e "$OUT/interrupted" ] || { [ -n "$signalled" ] && [ ${#started[@]} -gt 0 -o $failed -ne 0 ]; }; then
    while [ $SECONDS -le 61 ]; do sleep 1; done   # OAR submits only what ran for more than a minute again
    echo "interrupted: exit code 99, OAR submits the job again"
    exit 99
fi
[ $failed -eq 0 ] || echo "failed with exit code $failed"
exit $failed
