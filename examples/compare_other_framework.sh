#!/usr/bin/env bash
# Score another framework's detections, and compare two of its models with an interval.
#
#   examples/compare_other_framework.sh path/to/set new.json old.json
#
# Both files are COCO results, [{"image_id": 7, "category_id": 1, "bbox": [x, y, w, h], "score": 0.9}, ...], which
# mmdetection, detectron2, torchvision's references and others write; docs/formats.md tells which ids are meant.
# Without arguments, two short trainings here stand in for the other framework.
set -euo pipefail

out=${OUT:-compare}
split=${SPLIT:-val}
mkdir -p "$out"

if [ $# -eq 3 ]; then
    data=$1 new=$2 old=$3
else
    data=${DATA:-shapes:images=120,val=60,test=60,size=96,objects=4}
    for epochs in 2 4; do
        detsearch train --detector fcos --backbone tiny --data "$data" --out "$out/epochs$epochs" \
            --image-size 96 --epochs "$epochs" --batch-size 8 --set schedule.eval_every=0 \
            --set optim.name=adamw --set optim.lr=0.002 --set "neck={channels: 32, levels: [3, 6]}" --set head.convs=1
    done
    new=$out/epochs4/detections.json old=$out/epochs2/detections.json
fi

# The new model's tables, and new minus old by a paired bootstrap over the images. With --json, one document on stdout.
detsearch eval --detections "$new" --data "$data" --split "$split" --compare "$old" --plots "$out/plots"
