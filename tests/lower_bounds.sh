#!/usr/bin/env bash
# Prove the lower bound of transformers in pyproject.toml: a fresh environment with that version,
# and the tests that lean on transformers. CI has the newest one instead.
#
#     bash tests/lower_bounds.sh [transformers] [torch]
#
# Without versions: transformers' lower bound, and the torch that `python3` has here. Another torch
# may come with gigabytes of CUDA.
set -euo pipefail
cd "$(dirname "$0")/.."

lowest=${1:-$(sed -nE 's/^ *"transformers>=([0-9.]+),.*/\1/p' pyproject.toml)}
torch=${2:-$(python3 -c 'from importlib.metadata import version; print(version("torch").split("+")[0])')}
tests=(
    tests/models/test_{admission,reference}.py # every family
    tests/parity/test_splits.py tests/generation/test_refusals.py # caches, chunks
    tests/execution/test_{optimizations,static_cache}.py # what is shared, static caches
    tests/models/qwen_vl # a model of our own
)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
. "$work/venv/bin/activate"
export HF_HUB_OFFLINE=1 PIP_DISABLE_PIP_VERSION_CHECK=1
pip install --quiet "torch==$torch"
pip install --quiet '.[test]' "torch==$torch" "transformers==$lowest"
pytest -q "${tests[@]}" | tee "$work/pytest.log"

python - <<'PY'
import datetime, platform, torch, transformers
print(f"proven on {datetime.date.today()}: transformers {transformers.__version__},", end=" ")
print(f"torch {torch.__version__}, Python {platform.python_version()}")
PY
printf '  %s\n' "${tests[@]}"
tail -n 1 "$work/pytest.log"
