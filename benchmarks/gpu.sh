#!/usr/bin/env bash
# Figures of a GPU, in one go, also on a machine without a network:
#
#   benchmarks/gpu.sh wheels [PYTHON [CUDA]]   # where there is one: into benchmarks/wheels
#   benchmarks/gpu.sh run [OPTIONS]            # on the GPU: all of benchmarks/gpu.py, ten minutes
#   benchmarks/gpu.sh run --small              # the same on a CPU, with small networks
#
# PYTHON (3.12) and CUDA (130) are the GPU machine's; it must have a torch of its own. The wheels
# are those of constraints.txt. They are put before what that machine has, in a folder that is gone
# afterwards, and nothing of its own is changed. (A virtual environment with system packages would
# not see a torch that lies in another one.)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

WHEELS=benchmarks/wheels
NAMES=(
    accelerate annotated-types bitsandbytes datasets diffusers dill httpcore2 httpx2 huggingface_hub
    importlib_metadata multiprocess peft pydantic pydantic_core safetensors tokenizers torchao
    transformers truststore typing-inspection typing_extensions
)
LIMIT=570 # seconds, what is installed first included

wheels() {
    local python=${1:-3.12} cuda=${2:-130} pins=() name version platforms=(--platform any)
    for name in "${NAMES[@]}"; do
        pins+=("$(grep "^$name==" constraints.txt)")
    done
    for version in manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux_2_17 manylinux2014; do
        platforms+=(--platform "${version}_x86_64")
    done
    rm -rf "$WHEELS"
    python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version "$python" \
        --implementation cp "${platforms[@]}" --dest "$WHEELS" "${pins[@]}"
    python3 benchmarks/gpu_wheels.py "$WHEELS" "$cuda"
    du -sh "$WHEELS"
}

run() {
    local site
    site=$(mktemp -d)
    # shellcheck disable=SC2064 # as it is now
    trap "rm -rf '$site'" EXIT
    if compgen -G "$WHEELS/*.whl" >/dev/null; then
        python3 -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir \
            --disable-pip-version-check --target "$site" "$WHEELS"/*.whl
    else
        echo "there are no $WHEELS: what is installed here is used" >&2
    fi
    export PYTHONPATH="$site:$PWD/src:$PWD${PYTHONPATH:+:$PYTHONPATH}"
    export HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 TQDM_DISABLE=1
    # What one process compiles the next one need not.
    export TORCHINDUCTOR_CACHE_DIR="$site/compiled"
    python3 benchmarks/gpu.py --limit "$((LIMIT - SECONDS))" "$@"
}

case "${1:-}" in
wheels | run) "$@" ;;
*)
    sed -n '2,13s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
    ;;
esac
