#!/bin/bash
# Proof of run_oar.sh on a real scheduler with two nodes; what it prints is a transcript in docs/.
#
#   sudo [PYTHONPATH=..] tests/benchmarks/cluster.sh oar SANDBOX PYTHON > docs/oar-transcript.txt
#   sudo [PYTHONPATH=..] tests/benchmarks/cluster.sh slurm SANDBOX PYTHON > docs/slurm-transcript.txt
#
# SANDBOX: a command with `up`, `submit SCRIPT ARGS` (submit as the jobs' user, wait for the end and
# for the runs after it, print the outcome; $OARSUB_OPTS or $SBATCH_OPTS adds options), `run CMD`
# (as that user) and `down`. PYTHON: one that this user can run. Every check ends in "as it should"
# or "WRONG"; the exit code is the number of the wrong ones. PARTS="1 2" runs only these; 2 and 5
# compare with 1, 4 with 3.
set -uo pipefail
scheduler=$1 sandbox=$2 python=$3 parts=${PARTS:-1 2 3 4 5 6 7 8} wrong=0
cd "$(dirname "$0")/../.." || exit 1

# What differs between the two: words for a person's commands.
case $scheduler in
    oar)
        user=${OAR_USER:-oaruser}
        version() { oarsub --version | sed "s, version :,,"; }
        one='-l /nodes=1/gpu=1,walltime=00:10:00' two='-l /nodes=2/gpu=1,walltime=00:10:00'
        short='--checkpoint 75 -l /nodes=1/gpu=1,walltime=00:01:50'
        queue() { echo "oarsub -S $1 \"./run_oar.sh $2\""; }
        submit() { OARSUB_OPTS=$1 $sandbox submit run_oar.sh "${@:2}"; }
        rival='oarsub -l /nodes=2/gpu=2,walltime=00:00:30 "sleep 5"'
        stop='oardel -s SIGUSR2' end=oardel
        third=$stop
        ;;
    slurm)
        user=${SLURM_SANDBOX_USER:-slurmuser}
        version() { sbatch --version; }
        one='-c 4 -t 10' two='-N 2 -t 10' short='-p low -t 2 --signal=B:USR2@60'
        queue() { echo "sbatch $1 run_oar.sh $2"; }
        submit() { SBATCH_OPTS=$1 $sandbox submit run_oar.sh "${@:2}"; }
        rival='sbatch -N 2 --exclusive -t 1 -o /dev/null --wrap "sleep 5"'
        stop='scancel -b -s USR2' end=scancel
        third='scontrol requeue'
        ;;
    *) echo "which scheduler, oar or slurm?" >&2; exit 2 ;;
esac

trap '$sandbox down >&2' EXIT
$sandbox up >&2 || exit 1
house=$(getent passwd "$user" | cut -d: -f6)/segmentation
echo "# $(version), two nodes on one machine; $(git describe --always --dirty)"
rm -rf "$house" && mkdir -p "$house/.venv/bin"
cp -r train.py run_oar.sh segmentation "$house"
printf '#!/bin/sh\nOMP_NUM_THREADS=1 PYTHONPATH=%s exec %s "$@"\n' "${PYTHONPATH:-}" "$python" > "$house/.venv/bin/python"
chmod +x "$house/.venv/bin/python"
cd "$house" || exit 1
.venv/bin/python - <<'PYTHON'
from pathlib import Path
import numpy as np
from PIL import Image
for kind in ("images", "masks"):
    Path("pairs", kind).mkdir(parents=True)
for number in range(96):  # a bright box on dark noise
    noise = np.random.default_rng(number)
    mask = np.zeros((32, 32), np.uint8)
    top, left = noise.integers(0, 20, 2)
    mask[top : top + 12, left : left + 12] = 1
    image = 150 * mask[..., None] + noise.integers(0, 100, (32, 32, 3))
    Image.fromarray(image.astype(np.uint8)).save(f"pairs/images/{number:02}.png")
    Image.fromarray(mask).save(f"pairs/masks/{number:02}.png")
PYTHON
chown -R "$user": "$house"
flags="--data pairs --encoder-weights none --device cpu --augment 0 --batch-size 16 --workers 1"
fewer="$flags --epochs 8"
flags+=" --epochs ${EPOCHS:-56}"             # so many that a run outlives its time limit in part 2

job() { # NAME OPTIONS [FLAGS]: train in runs/NAME to the end; the scheduler's words
    queue "$2" "runs/$1 ${3:-$flags}" | sed 's/^/$ /'
    submit "$2" "runs/$1" ${3:-$flags} 2>&1 | grep -E '^OAR_JOB_ID|^Submitted|^== |^slurmstepd' |
        grep -vE '^== +/' | sed 's/^/    /'
}
logs() { cat $(ls -tr runs/"$1"/log.*.txt 2> /dev/null) /dev/null; }
story() { # NAME: its logs, an epoch's line shortened
    logs "$1" | grep -E '^(job|epoch|interrupted|done|failed)|is lost|rror:' |
        sed -E 's/  (train|val) .*//; s/^/    | /' |
        awk '/\| (job|epoch) / { line = line (line ? ", " : "    | ") $2 " " $3; next }
            line { print line; line = "" } { print } END { if (line) print line }'
}
in_run() { # NAME N [EPOCHS]: wait for the N-th run's so many epochs, by default one, or the end
    until logs "$1" | awk -v n="$2" -v epochs="${3:-1}" '/^job / { runs++; seen = 0 } /^epoch / { seen++ }
        /^(done|failed)/ { runs = n + 1 } END { exit !(runs > n || runs == n && seen >= epochs) }'; do sleep 0.5; done
}
now() { # COMMAND NAME: for its job, which is the last
    set -- "$1" "$(logs "$2" | awk '/^job / { id = $2 } END { print id }')"
    echo "    \$ $1 $2"
    $sandbox run $1 "$2" > /dev/null 2>&1
}
check() { # TEXT COMMAND..
    if "${@:2}"; then echo "    $1: as it should"; else echo "    $1: WRONG"; wrong=$((wrong + 1)); fi
}
history_of() { cut -d, -f1-6,9- "runs/$1/history.csv"; }    # without seconds and images/s
same_history() { cmp -s <(history_of "$1") <(history_of "$2"); }
same_weights() {
    .venv/bin/python - "runs/$1/last.pt" "runs/$2/last.pt" <<'PYTHON'
import sys
import torch
def equal(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    return len(a) == len(b) and all(map(equal, a, b)) if isinstance(a, list) else a == b
one, two = (torch.load(path, weights_only=True) for path in sys.argv[1:])
picks = lambda c: [c["model"], c["resume"]["optimizer"]]
sys.exit(not equal(picks(one), picks(two)))
PYTHON
}
says() { logs "$1" | grep -qE "$2"; }
runs_of() { [ "$(logs "$1" | grep -c '^job ')" -eq "$2" ]; }
more_runs() { [ "$(logs "$1" | grep -c '^job ')" -gt "$2" ]; }
equal_to() { # NAME NAME
    check "history.csv of $1 and of $2 are equal but for times" same_history "$1" "$2"
    check "weights and optimizer of both are equal, bit for bit" same_weights "$1" "$2"
}
part() { [[ " $parts " == *" $1 "* ]] || return 1; echo; echo "# $1. $2"; }

if part 1 "One node, undisturbed; at the same time another job on the same node"; then
    job plain "$one" > plain.txt & first=$!
    job beside "$one" > beside.txt & second=$!
    wait $first; cat plain.txt; story plain
    wait $second; cat beside.txt
    equal_to plain beside
fi

if part 2 "Three interruptions: the time limit, a job of higher priority, and by hand"; then
    job three "$short" > three.txt & first=$!
    in_run three 2
    echo "    \$ $rival   # a job that preempts"
    eval "$sandbox run $rival" > /dev/null 2>&1
    in_run three 3
    now "$third" three
    wait $first; cat three.txt; story three
    check "three interruptions or more" more_runs three 3
    equal_to plain three
fi

if part 3 "Two nodes, one log"; then
    job two "$two" "$fewer"; story two
    check "one run, to its end" says two '^done'
fi

if part 4 "Two nodes, stopped so that they go on"; then
    job stopped "$two" "$fewer" > stopped.txt & first=$!
    in_run stopped 1 2
    now "$stop" stopped
    wait $first; cat stopped.txt; story stopped
    check "two runs" runs_of stopped 2
    equal_to two stopped
fi

if part 5 "Ended for good: no other run by itself; the same command goes on"; then
    job ended "$one" > ended.txt & first=$!
    in_run ended 1 2
    now "$end" ended
    wait $first; cat ended.txt
    sleep 20
    check "one run" runs_of ended 1
    job ended "$one"; story ended
    check "the second went on" says ended '^done'
    equal_to plain ended
fi

if part 6 "A failing job is not submitted again"; then
    job failing "$one" "--model nonsense"; story failing
    sleep 20
    check "one run" runs_of failing 1
fi

if part 7 "Two nodes, the second stops answering"; then
    job lost "$two" "$fewer" > lost.txt & first=$!
    in_run lost 1 2
    rank=$(pgrep -u "$user" -f '^[^ ]*python[^ ]* -m torch.distributed.run.*--node-rank=1' | head -n 1)
    space=$(readlink "/proc/$rank/ns/uts")
    node=$(find /proc/[0-9]*/ns/uts -maxdepth 0 -printf '%p %l\n' 2> /dev/null |
        awk -v space="$space" '$2 == space' | cut -d/ -f3)
    kill -STOP $node
    stopped=$SECONDS
    until says lost '^failed'; do sleep 1; [ $((SECONDS - stopped)) -lt 300 ] || break; done
    took=$((SECONDS - stopped))
    kill -CONT $node
    wait $first; cat lost.txt; story lost
    echo "    the job failed $took s after the node had stopped"
    check "within a minute" [ $took -le 60 ]
fi

if part 8 "An array over seeds"; then
    few="${fewer/--epochs */--epochs 1}"
    if [ "$scheduler" = oar ]; then
        printf 'runs/seed-%d %s --seed %d\n' 0 "$few" 0 1 "$few" 1 > seeds.txt
        ask=(oarsub -S -l /nodes=1/gpu=1,walltime=00:10:00 --array-param-file seeds.txt ./run_oar.sh)
        sed 's/^/    seeds.txt: /' seeds.txt
    else
        ask=(sbatch -c 4 -t 10 --array=0-1 run_oar.sh runs/seed-%a $few --seed %a)
    fi
    echo "\$ ${ask[*]}"
    $sandbox run "${ask[@]}" 2>&1 | grep -E 'JOB_ID|Submitted' | sed 's/^/    /'
    for seed in 0 1; do
        for _ in $(seq 300); do says seed-$seed '^(done|failed)' && break; sleep 1; done
        story seed-$seed
        check "seed $seed" grep -q "\"seed\": $seed," runs/seed-$seed/config.json
    done
fi
echo
echo "# wrong: $wrong"
exit $wrong
