#!/bin/bash
# Proof of run_oar.sh on a real OAR scheduler with two nodes. Its output is docs/oar-transcript.txt.
#
#   sudo [PYTHONPATH=..] tests/benchmarks/cluster_oar.sh SANDBOX PYTHON [PARTS] > docs/oar-transcript.txt
#
# SANDBOX: a command with `up`, `submit SCRIPT ARGS` (oarsub -S, wait for the end and for resubmissions, print the
# outcome; $OARSUB_OPTS adds options), `run CMD` (as the jobs' user) and `down`. PYTHON: one that this user can run.
# PARTS: which of the five, by default "1 2 3 4 5"; 2 and 3 compare with 1, and 5 with 4.
set -uo pipefail
sandbox=$1 python=$2 parts=${3:-1 2 3 4 5}
user=${OAR_USER:-oaruser}
trap '$sandbox down >&2' EXIT
$sandbox up >&2 || exit 1
home=$(getent passwd "$user" | cut -d: -f6)
house=$home/segmentation
rm -rf "$house" && mkdir -p "$house/.venv/bin"
cp -r train.py run_oar.sh segmentation "$house"
printf '#!/bin/sh\nPYTHONPATH=%s exec %s "$@"\n' "${PYTHONPATH:-}" "$python" > "$house/.venv/bin/python"
chmod +x "$house/.venv/bin/python"
chown -R "$user": "$house"
cd "$house" || exit 1

flags="--model unet --image-size 32 32 --augment 0 --batch-size 40 --max-minutes 0 --workers 1"
lengths=(--epochs "${EPOCHS:-14}")

job() { # NAME OPTIONS: train in runs/NAME; what OAR says of it
    echo "\$ oarsub -S $2 \"./run_oar.sh runs/$1 $flags ${lengths[*]}\""
    OARSUB_OPTS=$2 $sandbox submit run_oar.sh "runs/$1" $flags "${lengths[@]}" 2>&1 |
        grep -E '^OAR_JOB_ID|^== job|^== resubmitted|rror' | sed 's/^/    /'
}
logs() { # NAME
    for log in runs/"$1"/log.*.txt; do
        echo "    -- $log"
        grep -E '^(job|epoch|interrupted|done|error|failed)|Error' "$log" | sed -E 's/  (train|val) .*//; s/^/       /'
    done
}
job_of() { # NAME: the number of its running job
    grep -l "runs/$1 " runs/"$1"/log.*.txt 2> /dev/null | sed 's/.*log\.\(.*\)\.txt/\1/' | sort -n | tail -1
}
after_epoch() { # NAME N: wait until the run has a line of epoch N
    until grep -qs "^epoch $2/" runs/"$1"/log.*.txt; do sleep 1; done
}
same() { # NAME NAME
    .venv/bin/python - "runs/$1/last.pt" "runs/$2/last.pt" <<'PYTHON'
import sys
import torch
def equal(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a if k not in ("seconds", "images_per_s"))
    return len(a) == len(b) and all(map(equal, a, b)) if isinstance(a, list) else a == b
one, two = (torch.load(path, weights_only=True) for path in sys.argv[1:])
for what, pick in {
    "weights": lambda c: c["model"],
    "optimizer": lambda c: c["resume"]["optimizer"],
    "history but times": lambda c: c["history"],
}.items():
    print(f"    {what} of {sys.argv[2]} and of {sys.argv[1]}: {'equal, bit for bit' if equal(pick(one), pick(two)) else 'DIFFERENT'}")
PYTHON
}

part() { [[ " $parts " == *" $1 "* ]] || return 1; echo "# $1. $2"; }

if part 1 "One node, one process, undisturbed; and at the same time, on the same node, a second run"; then
    job plain "-l /nodes=1/gpu=1,walltime=00:10:00" > plain.txt & first=$!
    job beside "-l /nodes=1/gpu=1,walltime=00:10:00" > beside.txt & second=$!
    wait $first; cat plain.txt; logs plain
    wait $second; cat beside.txt
    same plain beside
fi

if part 2 "One node, the checkpoint signal 60 s before a walltime of 95 s: exit code 99, resubmitted by OAR, goes on"; then
    job walltime "--checkpoint 60 -l /nodes=1/gpu=1,walltime=00:01:35"; logs walltime
    same plain walltime
fi

if part 3 "One node, besteffort, preempted by a job that wants both nodes"; then
    job preempted "-l /nodes=1/gpu=1,walltime=00:10:00" > preempted.txt & first=$!
    after_epoch preempted 3
    echo "\$ oarsub -l /nodes=2/gpu=2,walltime=00:00:30 'sleep 5'      # another user's job, not besteffort"
    $sandbox run oarsub -l /nodes=2/gpu=2,walltime=00:00:30 "sleep 5" 2>&1 | grep JOB_ID | sed 's/^/    /'
    wait $first; cat preempted.txt; logs preempted
    same plain preempted
fi

if part 4 "Two nodes, one process each, undisturbed"; then
    job two "-l /nodes=2/gpu=1,walltime=00:10:00"; logs two
fi

if part 5 "Two nodes, the checkpoint signal by hand: every rank on both nodes stops at the same step"; then
    job signalled "-l /nodes=2/gpu=1,walltime=00:10:00" > signalled.txt & first=$!
    after_epoch signalled 3
    id=$(job_of signalled)
    echo "\$ oardel -s SIGUSR2 $id"
    $sandbox run oardel -s SIGUSR2 "$id" > /dev/null 2>&1
    wait $first; cat signalled.txt; logs signalled
    same two signalled
fi
