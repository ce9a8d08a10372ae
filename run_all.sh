#!/usr/bin/env bash
# ./run_all.sh            every method but raven_dpo and co_supervised on default tasks, without download
# ./run_all.sh alignment  the same for methods/raven_dpo.py, which trains policies
# ./run_all.sh cifar100   distillation on CIFAR-100 as published, for a GPU; 5 seeds of 5 trainings of 240 epochs
# ./run_all.sh rates      linear heads at six learning rates, and at the one that --lr auto chooses
# ./run_all.sh protocol   every method with what protocol.py found for the kind of task
# ./run_all.sh ablations  RAVEN's parts, how many weak models, what its weights follow; specialists by domain
# ./run_all.sh settings   AdaptConf's four settings, whole networks that also get labels; controls of its weight
# All goes to OUT, default runs/. Rows that are there already are not computed again.
set -euo pipefail
cd "$(dirname "$0")"
case "${1:-}" in
"" | ablations | alignment | rates | protocol | settings | cifar100) ;;
*) echo "run_all.sh: no word, or one of those at its top, not $1" >&2 && exit 2 ;;
esac
source ./setup.sh
out=${OUT:-runs}

# Runs the commands of standard input, $1 at a time.
commands() {
    export PYTHON out
    xargs -t -P "$1" -L 1 sh -c 'exec "$PYTHON" methods/"$@" --out "$out" >/dev/null' sh
}
# Small networks and linear heads train faster two at a time on one thread each than one at a time on two. What
# several of them need is computed by the first, and the others wait for it.
together() { OMP_NUM_THREADS=1 commands 2; }

case "${1:-}" in
"")
    together <<'END'
naive.py --task reviews reviews-shift
naive.py --task glyphs glyphs-shift glyphs-cue
naive.py --task preferences
naive.py --task preferences-shift
naive.py --task glyphs-shift-0.2 glyphs-shift-0.6 glyphs-shift-0.8 --seeds 0 1 2
END
    together <<'END'
naive.py --supervision mean
naive.py --supervision mean --task glyphs-shift-0.2 glyphs-shift-0.6 glyphs-shift-0.8 --seeds 0 1 2
confidence.py
confidence.py --task glyphs-shift-0.2 glyphs-shift-0.6 glyphs-shift-0.8 --seeds 0 1 2
confidence.py --supervision mean
confidence.py --supervision mean --task glyphs-shift-0.2 glyphs-shift-0.6 glyphs-shift-0.8 --seeds 0 1 2
adaptive_confidence.py
adaptive_confidence.py --task glyphs-shift-0.2 glyphs-shift-0.6 glyphs-shift-0.8 --seeds 0 1 2
adaptive_confidence.py --supervision mean
adaptive_confidence.py --supervision mean --task glyphs-shift-0.2 glyphs-shift-0.6 glyphs-shift-0.8 --seeds 0 1 2
bayes.py
bayes.py --task glyphs-shift-0.2 glyphs-shift-0.6 glyphs-shift-0.8 --seeds 0 1 2
raven.py
raven.py --task glyphs-shift-0.2 glyphs-shift-0.6 glyphs-shift-0.8 --seeds 0 1 2
raven.py --weight-lr 0
naive.py --supervision vote
naive.py --supervision vote --task glyphs-shift-0.2 glyphs-shift-0.6 glyphs-shift-0.8 --seeds 0 1 2
dawid_skene.py
dawid_skene.py --task glyphs-shift-0.2 glyphs-shift-0.6 glyphs-shift-0.8 --seeds 0 1 2
prototypes.py
prototypes.py --task glyphs-shift-0.2 glyphs-shift-0.6 glyphs-shift-0.8 --seeds 0 1 2
END
    "$PYTHON" figures.py "$out/geometry.png"
    ;;
ablations)
    several="--task reviews-shift preferences-shift"
    shifted="--task glyphs-shift reviews-shift preferences-shift"
    together <<END
naive.py --task glyphs-shift
naive.py --task reviews-shift
naive.py --task preferences-shift
naive.py --task glyphs-shift --supervision mean --weak-models 20
naive.py --task reviews-shift --supervision mean --weak-models 20
naive.py --task preferences-shift --supervision mean --weak-models 20
co_supervised.py $several
END
    {
        cat <<END
raven.py --weight-lr 0 --easy-phase 0 $shifted
raven.py --easy-phase 1 $shifted
raven.py --weight-lr 0 $shifted
raven.py --easy-phase 0 $shifted
raven.py --task glyphs-shift
END
        for method in "naive.py --supervision mean" raven.py prototypes.py; do
            for number in 1 3 5 10 20; do
                echo "$method --weak-models $number $shifted"
            done
        done
        for temperature in 0.25 4; do
            echo "raven.py --weak-temperatures $temperature 1 1 $shifted"
            echo "raven.py --weak-temperatures 1 $temperature 1 $shifted"
            echo "raven.py --weak-temperatures 1 1 $temperature $shifted"
        done
        for method in "naive.py --supervision mean" bayes.py raven.py prototypes.py; do
            echo "$method $several"
            echo "$method $several --weak-models specialists"
        done
    } | together
    ;;
alignment)
    together <<'END'
raven_dpo.py --supervision one
raven_dpo.py --supervision mean
raven_dpo.py --supervision raven
raven_dpo.py --supervision raven --weight-lr 0
raven_dpo.py --supervision raven --form code
raven_dpo.py --supervision gold
END
    ;;
cifar100)
    commands 1 <<'END'
naive.py --task cifar100-distill
confidence.py --task cifar100-distill
adaptive_confidence.py --task cifar100-distill --temperature 0.5 --beta-ramp 0
END
    ;;
rates)
    for lr in 1e-5 3e-5 1e-4 3e-4 1e-3 3e-3 auto; do
        cat <<END
naive.py --seeds 0 1 2 --lr $lr
naive.py --seeds 0 1 2 --lr $lr --supervision mean
adaptive_confidence.py --seeds 0 1 2 --lr $lr --supervision mean
raven.py --seeds 0 1 2 --lr $lr
prototypes.py --seeds 0 1 2 --lr $lr
END
    done | together
    ;;
protocol)
    together <<'END'
naive.py --protocol
naive.py --protocol --supervision mean
confidence.py --protocol
confidence.py --protocol --supervision mean
adaptive_confidence.py --protocol
adaptive_confidence.py --protocol --supervision mean
bayes.py --protocol
raven.py --protocol
naive.py --protocol --supervision vote
dawid_skene.py --protocol
prototypes.py --protocol
co_supervised.py --protocol
END
    ;;
settings) # T and ramp of AdaptConf's authors, not chosen on our data; tau is 1 (theirs: 10 few-shot, 1 to 20 noisy)
    {
        cat <<'END'
naive.py --seeds 0 1 2 --task glyphs-distill glyphs-noisy-symmetric-0.2 glyphs-noisy-asymmetric-0.4
naive.py --seeds 0 1 2 --task glyphs-fewshot glyphs-transfer
naive.py --seeds 0 1 2 --task glyphs-shift reviews-shift preferences-shift --lr 1e-4
confidence.py --seeds 0 1 2 --task glyphs-distill glyphs-noisy-symmetric-0.2 glyphs-noisy-asymmetric-0.4
confidence.py --seeds 0 1 2 --task glyphs-fewshot glyphs-transfer glyphs-shift reviews-shift preferences-shift
END
        for beta in adaptive half one swapped select; do
            common="adaptive_confidence.py --seeds 0 1 2 --beta $beta"
            cat <<END
$common --temperature 0.5 --beta-ramp 0 --task glyphs-distill
$common --temperature 0.5 --beta-ramp 0.25 --task glyphs-noisy-symmetric-0.2 glyphs-noisy-asymmetric-0.4
$common --temperature 8 --beta-ramp 0.25 --task glyphs-fewshot
$common --temperature 4 --beta-ramp 0 --task glyphs-transfer
$common --task glyphs-shift reviews-shift preferences-shift
END
        done
    } | together
    ;;
esac
"$PYTHON" report.py "$out"
