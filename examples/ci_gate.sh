#!/usr/bin/env bash
# A gate for CI: train a small detector and fail the build when its AP is too low.
#
#   examples/ci_gate.sh                               # rendered faces, a minute on a CPU
#   MIN_AP=0.30 EPOCHS=24 IMAGE_SIZE=512 examples/ci_gate.sh path/to/set
#
# Exit codes are detsearch's own: 0 good enough, 1 a metric is under its limit, 2 something to mend (the data, an
# option). The same command goes on after an interruption; a finished training is not repeated.
set -euo pipefail

data=${1:-faces:images=240,val=40,test=100,size=96}
out=${OUT:-ci}
mkdir -p "$out"

# Every option that is not given has its default; docs/recipe.md lists them.
detsearch train --detector fcos --backbone tiny --data "$data" --out "$out/run" \
    --image-size "${IMAGE_SIZE:-96}" --epochs "${EPOCHS:-12}" --batch-size 4 \
    --set optim.name=adamw --set optim.lr=0.003 --set "neck={channels: 32, levels: [3, 5]}" --set head.convs=1 \
    --set schedule.eval_every=0

# Tables go to stderr, the one JSON document to stdout: keep it beside the pictures as the build's artefact.
detsearch eval "$out/run" --fail-under "AP=${MIN_AP:-0.50}" --plots "$out/plots" --json >"$out/score.json"
echo "passed; details in $out"
