#!/usr/bin/env bash
# Every method on its default tasks, which need no download, then the tables and figures (in OUT, default runs/).
# Rows that are there already are not computed again.
set -euo pipefail
cd "$(dirname "$0")"
source ./setup.sh
out=${OUT:-runs}

run() {
    echo "$*" >&2
    "$PYTHON" "$@" --out "$out" >/dev/null # the rows also go to $out
}

for method in methods/*.py; do
    supervisions=("")
    # Methods that learn from one weak model also run on the mean of all, which RAVEN sees too.
    if grep -q '"--supervision"' "$method"; then supervisions=("--supervision=each" "--supervision=mean"); fi
    for supervision in "${supervisions[@]}"; do
        run "$method" $supervision
        run "$method" $supervision --task glyphs-shift-0.2 glyphs-shift-0.6 glyphs-shift-0.8 --seeds 0 1 2
    done
done
"$PYTHON" summarize.py "$out"
