#!/usr/bin/env bash
# ./run_all.sh            every method but raven_dpo on its default tasks, without download; tables and figures
# ./run_all.sh alignment  the same for methods/raven_dpo.py, which trains policies
# All goes to OUT, default runs/. Rows that are there already are not computed again.
set -euo pipefail
cd "$(dirname "$0")"
case "${1:-}" in "" | alignment) ;; *) echo "run_all.sh: nothing, or alignment, not $1" >&2; exit 2 ;; esac
source ./setup.sh
out=${OUT:-runs}

run() {
    echo "$*" >&2
    "$PYTHON" "$@" --out "$out" >/dev/null # the rows also go to $out
}

if [ "${1:-}" = alignment ]; then
    for supervision in one mean gold raven "raven --weight-lr 0" "raven --form code"; do
        run methods/raven_dpo.py --supervision $supervision
    done
    exec "$PYTHON" summarize_alignment.py "$out"
fi
for method in methods/*.py; do
    if [ "$method" = methods/raven_dpo.py ]; then continue; fi
    supervisions=("")
    # Methods that learn from one weak model also run on the mean of all, which RAVEN sees too.
    if grep -q '"--supervision"' "$method"; then supervisions=("--supervision=each" "--supervision=mean"); fi
    for supervision in "${supervisions[@]}"; do
        run "$method" $supervision
        run "$method" $supervision --task glyphs-shift-0.2 glyphs-shift-0.6 glyphs-shift-0.8 --seeds 0 1 2
    done
done
"$PYTHON" summarize.py "$out"
