#!/usr/bin/env bash
# All checks and measurements of the kernels on a machine, especially one with a GPU, in one folder:
#     tools/measure.sh OUT
# Requires an installation with the extras test and bench. Every step runs, even if earlier ones failed;
# OUT/summary.txt lists the results, OUT/*.log the output. PYTEST_ARGS goes to pytest (for example
# "-x -k gpu"), BENCH_ARGS to the benchmarks, TRAIN_ARGS to a short training run; LIMIT is the time
# limit per step (default 9m).
set -uo pipefail
cd "$(dirname "$0")/.."
[ $# = 1 ] || { sed -n '2,7s/^# //p' "$0"; exit 2; }
mkdir -p "$1"
out=$(cd "$1" && pwd)
limit=${LIMIT:-9m}

step() {
    local name=$1 status
    shift
    SECONDS=0
    timeout --signal=INT --kill-after=20 "$limit" "$@" >"$out/$name.log" 2>&1
    status=$?
    printf '%-22s exit %-3s %5ss  %s\n' "$name" "$status" "$SECONDS" \
        "$(grep -v '^ *$' "$out/$name.log" | tail -n 1 | cut -c1-100)" | tee -a "$out/summary.txt"
}

{
    date -u +%Y-%m-%dT%H:%MZ
    git describe --always --dirty
    python -c 'import torch; print("torch", torch.__version__)'
    nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null || echo "no GPU"
} | tee "$out/summary.txt"

# shellcheck disable=SC2086
{
    step info python -m cekernels.info
    step kernels pytest tests/cekernels/test_gpu.py tests/cekernels/test_implementations.py tests/cekernels/test_selfcheck.py \
        ${PYTEST_ARGS:-}
    step graph pytest tests/context_encoder/training/test_graph.py ${PYTEST_ARGS:-}
    step tests pytest --ignore=tests/cekernels/test_gpu.py --ignore=tests/cekernels/test_implementations.py \
        --ignore=tests/cekernels/test_selfcheck.py ${PYTEST_ARGS:-}
    step numerics python tools/numerics.py
    cp docs/numerics.json "$out"
    step training python -m context_encoder.train --out "$out/run" \
        ${TRAIN_ARGS:---preset inpaint-center --steps 200 --val-every 200}
    step training-graph python -m context_encoder.train --out "$out/run-graph" --graph \
        ${TRAIN_ARGS:---preset inpaint-center --steps 200 --val-every 200}
    step bench pytest bench/ --benchmark-json="$out/bench.json" ${BENCH_ARGS:-}
    step report python -m bench.report "$out/bench.json"
}
rm -rf "$out/run/checkpoints" "$out/run-graph/checkpoints"
