#!/usr/bin/env bash
# Search how many positives an object should get, then test on images the search never saw whether it helps.
#
#   examples/search_and_compare.sh                      # rendered faces, a few minutes on two cores
#   EPOCHS=12 IMAGE_SIZE=512 TRIALS=30 examples/search_and_compare.sh path/to/set
#
# Interrupt it whenever you like: the same command goes on where it was.
set -euo pipefail

data=${1:-faces:images=240,val=120,test=300,size=96}
out=${OUT:-studies}
name=${NAME:-example}
jobs=${JOBS:-2}

detsearch assign search --detector fcos --backbone "${BACKBONE:-tiny}" --data "$data" \
    --image-size "${IMAGE_SIZE:-96}" --epochs "${EPOCHS:-12}" --batch-size 4 --bins 1 \
    --set optim.name=adamw --set optim.lr=0.003 --set "neck={channels: 32, levels: [3, 5]}" --set head.convs=1 \
    --trials "${TRIALS:-8}" --jobs "$jobs" --name "$name" --out "$out"

# "Nothing better than the recipe as given" is an outcome, too: then best.yaml holds no assignment.
if ! grep -q '^assign:' "$out/$name/best.yaml"; then
    echo "nothing better found"
    exit 0
fi

# The test: both sides, the same seeds, at equal cost, and the interval of the difference.
detsearch assign train --study "$out/$name" --baseline --seeds "${SEEDS:-3}" --jobs "$jobs"

# The runs are ordinary runs: one seed in detail, class by class.
detsearch eval "$out/$name/final/searched-seed0" --compare "$out/$name/final/baseline-seed0"
