#!/usr/bin/env bash
# Every benchmark that needs no GPU, in under 15 minutes on two quiet cores; keeps what they print as Markdown.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${BIN:-.venv/bin}/python"
results="benchmarks/results/cpu-$(nproc)cores-$(date +%F).md"
export PYTHONWARNINGS=ignore TF_CPP_MIN_LOG_LEVEL=3

{
  echo "# All CPU benchmarks"
  echo
  echo "\`make bench\`, $(date +%F), $(nproc) cores ($(sed -n 's/^model name\s*: //p' /proc/cpuinfo | head -1)),"
  "$python" -c "import platform, torch, timm; print('Python', platform.python_version(), 'torch', torch.__version__, 'timm', timm.__version__)"
} > "$results"
for call in step noise loader decode label writing selection startup corruptions "memory --sizes 10000 100000"; do
  echo "== $call"
  { echo; echo "## python benchmarks/${call/ /.py }$([[ $call == *" "* ]] || echo .py)"; echo; } >> "$results"
  # shellcheck disable=SC2086
  set -- $call
  "$python" "benchmarks/$1.py" "${@:2}" | tee /dev/stderr | sed 's/^/    /' >> "$results"
done
echo "$results"
