#!/bin/bash
# Train on a cluster, from one GPU to several nodes, through as many time limits as it takes.
# One script for two schedulers; it takes the run's folder, then train.py's flags:
#   oarsub -S -l /nodes=1/gpu=1,walltime=4:00:00 "./run_oar.sh runs/unet --model unet"
#   oarsub -S -l /nodes=2/gpu=4,walltime=12:00:00 "./run_oar.sh runs/two --data /data/drone"
#   sbatch run_oar.sh runs/unet --model unet
#   sbatch -N 2 --gres=gpu:4 -c 32 -t 12:00:00 run_oar.sh runs/two --data /data/drone
# Asked for: to be stopped and run again, and USR2 to this script 120 s before the end. No #OAR -l,
# as OAR would take it or the command's, whichever ends first.
#OAR -n segmentation
#OAR -t besteffort
#OAR -t idempotent
#OAR --checkpoint 120
#SBATCH -J segmentation
#SBATCH -N 1 --ntasks-per-node=1 --gres=gpu:1 -c 8 -t 04:00:00
#SBATCH --requeue --open-mode=append --signal=B:USR2@120

PYTHON=$PWD/.venv/bin/python   # the same path on all nodes; python from PATH if it is not there
RANKS=                         # processes a node; empty: one a GPU of the job, at least one
GRACE=90                       # seconds to wait for the save, less than the 120 above
PASS=(PATH LD_LIBRARY_PATH XDG_CACHE_HOME TORCH_HOME OMP_NUM_THREADS "${!NCCL_@}" "${!GLOO_@}")
[ "${BASH_VERSINFO[0]}${BASH_VERSINFO[1]}" -ge 44 ] || { echo "bash 4.4 is needed" >&2; exit 2; }

# What differs between the schedulers:
#   job, nodes        the job's number; the names of its nodes, the first is this one
#   gpus_of NODE      how many GPUs of it are in the job
#   on NODE COMMAND   turn this process into a shell command there, in this folder, with PASS set
#   submit_again      have the scheduler run this script again, when it ends with 99
if [ -n "$OAR_JOB_ID" ]; then
    job=$OAR_JOB_ID
    mapfile -t nodes < <(awk '!seen[$0]++' "$OAR_NODEFILE")
    gpus_of() {
        grep "network_address = '$1'" "$OAR_RESOURCE_PROPERTIES_FILE" |
            grep -o "gpudevice = '[0-9]*'" | sort -u | wc -l
    }
    on() {
        [ "$1" != "${nodes[0]}" ] || exec bash -c "$2"
        for name in "${PASS[@]}"; do [ -z "${!name}" ] || there+=("$name=${!name}"); done
        exec oarsh "$1" "cd ${PWD@Q} && exec env ${there[*]@Q} bash -c ${2@Q}"
    }
    submit_again() { while [ $SECONDS -le 61 ]; do sleep 1; done; }   # 99 counts after a minute
elif [ -n "$SLURM_JOB_ID" ]; then
    job=$SLURM_JOB_ID task=${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}
    mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
    gpus_of() { echo "${SLURM_GPUS_ON_NODE:-0}"; }
    on() { exec srun --nodes=1 --ntasks=1 --nodelist="$1" --cpu-bind=none bash -c "$2"; }
    submit_again() { scontrol requeue "${SLURM_ARRAY_JOB_ID:-$job}$task"; }   # not all of an array
    unset SLURM_EXPORT_ENV                     # or `sbatch --export` leaves srun without a PATH
    set -- "${@//\%a/$SLURM_ARRAY_TASK_ID}"    # of an array: runs/seed-%a --seed %a
else
    echo "run_oar.sh is a job for oarsub -S or sbatch: see docs/cluster.md" >&2
    exit 2
fi

OUT=${1:-runs/segformer}       # the run's folder; the job's log is log.JOB.txt there
FLAGS=("${@:2}")
[ -x "$PYTHON" ] || PYTHON=$(command -v python3)
mkdir -p "$OUT" || exit 2
exec >> "$OUT/log.$job.txt" 2>&1 < /dev/null
echo "job $job on ${nodes[*]}: $OUT ${FLAGS[*]}"
port=$((20000 + job % 10000))  # two jobs on a node do not meet
rm -f "$OUT/interrupted"       # of the job before: this one may fail before train.py removes it
tries=$OUT/tries               # a line for each job since the last save
[ ! "$OUT/last.pt" -nt "$tries" ] || rm -f "$tries"
echo "$job" >> "$tries"

# USR2 comes some time before the end: the ranks agree on a step, save, leave the file `interrupted`
# and end with 0; the job is submitted again, and --resume goes on. TERM is the end itself.
signalled='' ended=''
trap 'signalled=${signalled:-$SECONDS}' USR2
trap 'signalled=${signalled:-$SECONDS} ended=yes' TERM INT
trap : PIPE                    # of a node that is lost

# One connection to each node: down its stdin come signals for the ranks, up its stdout a sign of
# life each second, up its stderr the log. A node that is silent for half a minute is lost.
# shellcheck disable=SC2329  # it runs where `declare -f` takes it
run_torchrun() { # COMMAND..: on a node; its ranks get the signals
    trap 'echo signalled' TERM USR2              # Slurm preempts what srun runs, not the script
    (trap '' USR2; exec "$@" >&2 < /dev/null) & pid=$!   # torchrun itself would die of USR2
    while kill -0 "$pid" 2> /dev/null; do
        echo alive
        read -r -t 1 signal
        case $? in
            0) pkill -"$part$signal" -P "$pid" 2> /dev/null; part='' ;;
            1) kill "$pid"; break ;;             # end of file: the script is gone
            *) part+=$signal ;;                  # a second may end inside the word
        esac
    done
    wait "$pid"
}
train_on() { # RANK NODE: torchrun there; 0, or its exit code, or 1 if the node is lost
    gpus=$(gpus_of "$2") device=()
    ranks=${RANKS:-$((gpus > 0 ? gpus : 1))}
    [ "$gpus" -eq 0 ] || device=(--device cuda)  # or a bad driver means a training on the CPU
    exec 3<&0                                    # bash gives <(..) no stdin of its own
    exec {up}< <(on "$2" "$(declare -f run_torchrun); run_torchrun $(printf '%q ' "$PYTHON" \
        -m torch.distributed.run --nnodes=${#nodes[@]} --node-rank="$1" --nproc-per-node="$ranks" \
        --master-addr="${nodes[0]}" --master-port=$port \
        train.py "${device[@]}" "${FLAGS[@]}" --out "$OUT" --resume)" <&3)
    process=$! silent=0 limit=20
    trap '' TERM INT USR2                        # these are the script's
    while [ $silent -lt $limit ]; do             # five minutes to begin, then half a minute
        read -r -t 15 word <&"$up"
        case $? in
            0) silent=0 limit=2; [ "$word" != signalled ] || kill -USR2 $$ ;;
            1) wait "$process"; return ;;
            *) silent=$((silent + 1)) ;;
        esac
    done
    echo "$2 is lost: no sign of life for $((15 * limit)) s"
    return 1
}
tell() { for to in "${down[@]}"; do echo "$1" >&"$to"; done 2> /dev/null; }  # SIGNAL: to all ranks
running=() down=() failed=0 failed_at='' sent=-9
for rank in "${!nodes[@]}"; do
    pipe=$(mktemp -u) && mkfifo "$pipe"          # bash 4.4 waits for the last of many >(..) only
    train_on "$rank" "${nodes[rank]}" < "$pipe" &
    running+=($!)
    exec {to}> "$pipe" && rm "$pipe" && down+=("$to")
done
while sleep 1; [ ${#running[@]} -gt 0 ]; do
    left=()
    for process in "${running[@]}"; do
        if kill -0 "$process" 2> /dev/null; then left+=("$process"); continue; fi
        wait "$process" || failed=$?
    done
    running=("${left[@]}")
    if [ $failed -ne 0 ]; then                   # the other nodes end by themselves, or are ended
        failed_at=${failed_at:-$SECONDS}
        [ $((SECONDS - failed_at)) -lt 10 ] || { tell KILL; sleep 5; break; }
    elif [ -n "$signalled" ]; then
        [ $((SECONDS - signalled)) -lt $GRACE ] || break
        [ -e "$OUT/interrupted" ] || [ $((SECONDS - sent)) -lt 5 ] || { sent=$SECONDS; tell USR2; }
    fi                                           # again and again: one may come early or garbled
done

if [ -n "$signalled" ] && [ "$failed ${#running[@]}" != "0 0" ]; then
    touch "$OUT/interrupted"                     # not saved in time: the save before it stands
fi
if [ ! -e "$OUT/interrupted" ]; then
    [ $failed -eq 0 ] || echo "failed with exit code $failed"
    exit $failed
elif [ -n "$ended" ]; then
    echo "interrupted from outside: this script does not submit the job again"
elif [ ! "$OUT/last.pt" -nt "$tries" ] && [ "$(wc -l < "$tries")" -ge 5 ]; then
    echo "interrupted for the fifth time without a save: not submitted again"
elif echo "interrupted: the scheduler runs the job again" && submit_again; then
    exit 99
fi
exit 1
