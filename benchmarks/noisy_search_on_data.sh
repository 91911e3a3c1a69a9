#!/bin/sh
# Is the recipe better that a search recommends which knows its noise, than the one of highest score?
# benchmarks/noisy_search_on_data.sh SEED OUT RECIPE_OPTIONS...
# Two searches of the same number of trainings with that seed, then both recipes and the one as given on the test split,
# with three seeds that neither has used: OUT/highest-score, OUT/knows-noise, and the table that is printed last. A search that
# recommends the recipe as given takes part with that; of the one that knows its noise, what leads is trained all the same. Run again after an interruption, it goes on.
# For example: benchmarks/noisy_search_on_data.sh 100 studies --data bccd --detector fcos --epochs 8 --image-size 160
set -eu

seed=$1 out=$2
shift 2

detsearch assign search "$@" --bins 3 --trials 12 --seed "$seed" --noise-seeds 1 --repeats 1 --out "$out" --name highest-score
detsearch assign search "$@" --bins 3 --trials 12 --seed "$seed" --no-early-stop --out "$out" --name knows-noise

# a fragment with nothing in it is the recipe as given
holds() { grep -qv '^#' "$out/$1/best.yaml" && ! grep -q '^{}' "$out/$1/best.yaml"; }
found=
for name in highest-score knows-noise; do
  if holds "$name"; then found="$found $name"; fi
done
holds knows-noise || detsearch assign train --study "$out/knows-noise" --trial leader --seed "$((seed + 50))" --seeds 3
case $found in
  "") echo "both searches recommend the recipe as given" ;;
  *" "*" "*)
    detsearch assign train --study "$out/highest-score" --baseline --against "$out/knows-noise/best.yaml" \
      --seed "$((seed + 50))" --seeds 3
    ;;
  *) detsearch assign train --study "$out/${found# }" --baseline --seed "$((seed + 50))" --seeds 3 ;;
esac
