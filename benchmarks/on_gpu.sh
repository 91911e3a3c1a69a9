#!/bin/bash
# Everything that only a GPU can tell, in one call of under eight minutes: on a machine with an NVIDIA GPU, nvcc, PyTorch
# and torchvision, and nothing else but this checkout and, where no package index is reachable, the wheels it lacks.
#
#   benchmarks/on_gpu.sh OUT                  # writes OUT/*.json and OUT/summary.md, and prints the summary
#   WHEELS=.whl benchmarks/on_gpu.sh OUT      # what is missing is installed from the folder .whl, what pySOT needs
#                                             # (dill, pyDOE2) among it
#   DEVICE=cpu benchmarks/on_gpu.sh OUT       # rehearses every step on a CPU with small sizes, in about five minutes
#
# Steps: build the kernels; the tests that need a GPU; the kernels' times against physical floors; RetinaNet-R50 and
# FCOS-R50 steps against torchvision's; a search of eight trials with everything on the device; NCCL where there are two
# GPUs. A step that fails or runs over its limit does not stop the others. Exits 0 where all went well, else 1.
set -uo pipefail
out=${1:?name a folder for the results: benchmarks/on_gpu.sh OUT}
device=${DEVICE:-cuda}
here=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$out"
out=$(cd "$out" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT # only our own folder of links and runs

# Two links are an installation without pip's isolated build, which would fetch setuptools.
mkdir "$work/path"
ln -s "$here/detsearch_cli" "$work/path/detsearch_cli"
ln -s "$here/kernels" "$work/path/detsearch_kernels"
export PYTHONPATH="$work/path${WHEELS:+:$work/site}${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
if [ -n "${WHEELS:-}" ]; then
    python3 -m pip install -q --no-index --no-deps --no-compile --target "$work/site" "$WHEELS"/*.whl || exit 1
fi
cd "$here" || exit 1

detsearch() { python3 -m detsearch_cli.cli.app "$@"; }
export -f detsearch

# step NAME SECONDS COMMAND: runs it in $work, keeps its output as OUT/NAME.txt and how it ended in steps.jsonl.
step() {
    local name=$1 limit=$2 begin=$SECONDS code
    shift 2
    echo "== $name" >&2
    (cd "$work" && timeout --kill-after=5 "$limit" bash -c "$*") >"$out/$name.txt" 2>&1
    code=$?
    echo "{\"step\": \"$name\", \"exit\": $code, \"seconds\": $((SECONDS - begin)), \"limit\": $limit}" >>"$out/steps.jsonl"
}

: >"$out/steps.jsonl"
if [ "$device" = cuda ]; then
    size="" tests="(cuda or gpu) and not emulated"
    network="--backbone resnet18 --image-size 256 --batch-size 16"
    data="shapes:images=400,val=100,size=256"
else
    size="--device cpu --height 64 --width 64 --images 1 --steps 3 --backbone tiny" tests="emulated"
    network="--backbone tiny --image-size 64 --batch-size 8"
    data="shapes:images=32,val=16,size=64"
fi
on_device="--device $device --set runtime.cache=$([ "$device" = cuda ] && echo device || echo ram)"

# First and alone: without a GPU none of the rest means anything.
python3 benchmarks/_on_gpu.py machine "$device" "$out/machine.json" || exit 1
step build 120 "detsearch kernels build && detsearch kernels info --json > '$out/kernels.json'"
step tests 60 "cd '$here' && python3 -m pytest -n 0 -q -rs -p no:cacheprovider tests/kernels -k '$tests'"
[ "$device" = cuda ] && step floors 60 "python3 '$here/benchmarks/_kernels_gpu.py' --json '$out/floors.json'"
step steps 90 "python3 '$here/benchmarks/torchvision_step.py' $size --json '$out/steps_a_second.json'"
step search 150 "detsearch assign search --data $data --detector fcos $network --epochs 3 $on_device --set runtime.kernels=required --trials 8 --jobs 1 --name gpu --json > '$out/search.json'"
if [ "$device" = cpu ] || [ "$(nvidia-smi -L | wc -l)" -ge 2 ]; then
    step two 60 "detsearch train --data $data --detector fcos $network --epochs 2 $on_device --devices 2 --out two --json > '$out/two.json'"
fi
python3 "$here/benchmarks/_on_gpu.py" summary "$out" | tee "$out/summary.md"
exit "${PIPESTATUS[0]}"
