#!/usr/bin/env bash
# The tables of Parameterized AP Loss (Tao et al. 2022) at the size of a laptop: which loss trains the better detector?
#
#   examples/aploss_tables.sh                                        # rendered faces, every table
#   TABLES="1 2" examples/aploss_tables.sh path/to/set
#   DETECTOR=retinanet BACKBONE=resnet50 EPOCHS=12 IMAGE_SIZE=512 TRIALS=80 examples/aploss_tables.sh path/to/set
#
# TRIALS trainings a search, SEEDS a row. Trainings as they are: table 1 17 + 18, 2 18, 3 to 6 17 + 6 each, 7 6, 8 6 after the
# search of table 1, figure 3 17 more. A training takes 30 to 40 seconds of a core, so that all of them take about an hour.
# Interrupt it whenever you like: the same command goes on where it was.
set -euo pipefail

data=${1:-faces:images=160,val=80,test=200,size=96}
other=${OTHER:-faces:images=160,val=80,test=200,size=96,domain=1}
out=${OUT:-aploss-tables}
recipe="--detector ${DETECTOR:-fcos} --backbone ${BACKBONE:-tiny} --image-size ${IMAGE_SIZE:-96} --epochs ${EPOCHS:-12}
    --batch-size 4 --set optim.name=adamw --set optim.lr=0.003 --set optim.clip_norm=5 --set schedule.name=cosine
    --set neck.channels=32 --set neck.levels=[3,5] --set head.convs=1"
search="--trials ${TRIALS:-16} --jobs ${JOBS:-2} --out $out"
rows="--seeds ${SEEDS:-3} --jobs ${JOBS:-2}"

for table in ${TABLES:-1 2 3 4 5 6 7 8 figure3}; do
    echo "table $table"
    # The candidate that leads is tested even where nothing is better than the detector's own loss.
    # shellcheck disable=SC2086  # the variables hold several words
    case $table in
    1) # the searched loss against those made by hand
        detsearch aploss search $recipe --data "$data" $search --name own
        detsearch aploss train --study "$out/own" --trial leader --baseline $rows --against focal-l1 \
            --against ap-loss --against alrp --against rank-sort
        ;;
    2) # hand-made curves, and those that were published
        detsearch aploss train $recipe --data "$data" --out "$out/table2" $rows --baseline --against pap-linear \
            --against pap-square --against pap-sqrt --against pap-sigmoid --against pap-retinanet
        ;;
    3) # one curve for all five functions
        detsearch aploss search $recipe --data "$data" $search --name shared --shared
        detsearch aploss train --study "$out/shared" --trial leader --baseline $rows
        ;;
    4) # no scale of the gradient into the boxes
        detsearch aploss search $recipe --data "$data" $search --name unscaled --no-scale
        detsearch aploss train --study "$out/unscaled" --trial leader --baseline $rows
        ;;
    5) # the localisation score
        detsearch aploss search $recipe --data "$data" $search --name l1 --localisation l1
        detsearch aploss train --study "$out/l1" --trial leader --baseline $rows
        ;;
    6) # segments of a curve
        detsearch aploss search $recipe --data "$data" $search --name segments3 --segments 3
        detsearch aploss train --study "$out/segments3" --trial leader --baseline $rows
        ;;
    7) # gradient through the denominator
        detsearch aploss train $recipe --data "$data" --out "$out/table7" $rows --against pap-retinanet --against pap-through
        ;;
    8) # the loss found here, on other data
        detsearch aploss search $recipe --data "$data" $search --name own
        detsearch aploss train --study "$out/own" --trial leader --baseline $rows --data "$other" --out "$out/table8"
        ;;
    figure3) # PPO2 against random search
        detsearch aploss search $recipe --data "$data" $search --name own
        detsearch aploss search $recipe --data "$data" $search --name random --sampler random
        detsearch study compare "$out/own" "$out/random" --out "$out/figure3.png"
        ;;
    *)
        echo "there is no table $table; TABLES takes 1 to 8 and figure3" >&2
        exit 2
        ;;
    esac
done
