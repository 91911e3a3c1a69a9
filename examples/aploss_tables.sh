#!/usr/bin/env bash
# The tables of Parameterized AP Loss (Tao et al. 2022) at the size of a laptop: which loss trains the better detector?
#
#   examples/aploss_tables.sh                                        # rendered faces, every table
#   TABLES="1 2" examples/aploss_tables.sh path/to/set
#   DETECTOR=retinanet BACKBONE=resnet50 EPOCHS=12 IMAGE_SIZE=512 TRIALS=80 examples/aploss_tables.sh path/to/set
#
# TRIALS trainings a search, SEEDS a row: table 1 is a search and 8 rows, 2 has 6 rows, 3 to 6 a search and 2 rows each, 7 has
# 2 rows, 8 has 2 rows on other data, and figure 3 is two searches. As they are, on two cores: @DURATIONS@.
# Interrupt it whenever you like: the same command goes on where it was.
set -euo pipefail

data=${1:-faces:images=160,val=80,test=200,size=96}
other=${OTHER:-faces:images=160,val=80,test=200,size=96,domain=1}
out=${OUT:-aploss-tables}
trials=${TRIALS:-16}
recipe=(--detector "${DETECTOR:-fcos}" --backbone "${BACKBONE:-tiny}" --image-size "${IMAGE_SIZE:-96}"
    --epochs "${EPOCHS:-12}" --batch-size 4 --set optim.name=adamw --set optim.lr=0.003 --set optim.clip_norm=5
    --set schedule.name=cosine --set "neck={channels: 32, levels: [3, 5]}" --set head.convs=1)
rows=(--seeds "${SEEDS:-3}" --jobs "${JOBS:-2}")
# what the paper compares with; the losses of regions are Faster R-CNN's
if [ "${DETECTOR:-fcos}" = faster_rcnn ]; then
    losses=(--against cross-entropy-l1 --against cross-entropy-giou)
else
    losses=(--against focal-l1)
    # RetinaNet has no centerness to leave out
    if [ "${DETECTOR:-fcos}" = fcos ] || [ "${DETECTOR:-fcos}" = atss ]; then losses+=(--against focal-giou); fi
fi
losses+=(--against ap-loss --against alrp --against rank-sort)

search() { # NAME OPTIONS...
    local name=$1
    shift
    detsearch aploss search "${recipe[@]}" --data "$data" --trials "$trials" --jobs "${JOBS:-2}" --name "$name" --out "$out" "$@"
}

# The candidate that leads is tested even where nothing is better than the detector's own loss.
against_baseline() { # NAME OPTIONS...
    local name=$1
    shift
    detsearch aploss train --study "$out/$name" --trial leader --baseline "$@" "${rows[@]}"
}

for table in ${TABLES:-1 2 3 4 5 6 7 8 figure3}; do
    echo "table $table"
    case $table in
    1) # the searched loss against those made by hand
        search own
        against_baseline own "${losses[@]}"
        ;;
    2) # hand-made curves, and those that were published
        detsearch aploss train "${recipe[@]}" --data "$data" --out "$out/table2" "${rows[@]}" \
            --against pap-linear --against pap-square --against pap-sqrt --against pap-sigmoid --against pap-retinanet --baseline
        ;;
    3) # one curve for all five functions
        search shared --shared
        against_baseline shared
        ;;
    4) # no scale of the gradient into the boxes
        search unscaled --no-scale
        against_baseline unscaled
        ;;
    5) # the localisation score
        search l1 --localisation l1
        against_baseline l1
        ;;
    6) # segments of a curve
        search segments3 --segments 3
        against_baseline segments3
        ;;
    7) # gradient through the denominator
        detsearch aploss train "${recipe[@]}" --data "$data" --out "$out/table7" "${rows[@]}" \
            --against pap-retinanet --against pap-through
        ;;
    8) # the loss found here, on other data
        search own
        against_baseline own --data "$other" --out "$out/table8"
        ;;
    figure3) # PPO2 against random search
        search own
        search random --sampler random
        detsearch study compare "$out/own" "$out/random" --out "$out/figure3.png"
        ;;
    *)
        echo "there is no table $table; TABLES takes 1 to 8 and figure3" >&2
        exit 2
        ;;
    esac
done
