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
calls=(
  "step --budget 20" noise "loader --seconds 0.5" decode "label --seconds 2" "writing --rows 1000000"
  "selection --rows 1000000" "selection --rows 100000000 --repeats 1" "features --repeats 1" startup corruptions
  "memory --sizes 10000 100000" "checksums --repeats 1"
)
for call in "${calls[@]}"; do
  read -r name arguments <<< "$call"
  echo "== $call"
  { echo; echo "## python benchmarks/$name.py${arguments:+ $arguments}"; echo; } >> "$results"
  # shellcheck disable=SC2086
  "$python" "benchmarks/$name.py" $arguments | tee /dev/stderr | sed 's/^/    /' >> "$results"
done
echo "$results"
printf '\nAll in %d min %d s.\n' $((SECONDS / 60)) $((SECONDS % 60)) | tee -a "$results"
