#!/usr/bin/env bash
# Checks and measurements that need a GPU, in one call, with the Python that is there (torch, timm and the rest of
# pyproject.toml installed or on PYTHONPATH).
#
#   bash benchmarks/gpu.sh                 tests, then the speed of steps, noise and labelling: under 10 minutes
#   bash benchmarks/gpu.sh cifar10         CIFAR-10 with 4,000 labels, three students; CIFAR10 and JUNK name the
#                                          archives, STEPS and SEEDS shorten a dry run
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
python="${PYTHON:-python3}"

"$python" -c "import torch, timm; print(torch.__version__, timm.__version__, torch.cuda.is_available() and torch.cuda.get_device_name())"
if [ "${1:-speed}" = cifar10 ]; then
  arguments=(cifar10-4000 --labels 4000 --seeds ${SEEDS:-0})
  [ -z "${CIFAR10:-}" ] || arguments+=(--data "$CIFAR10")
  [ -z "${JUNK:-}" ] || arguments+=(--junk "$JUNK")
  [ -z "${STEPS:-}" ] || arguments+=(--teacher.train.steps "$STEPS" --student.train.steps "$STEPS")
  exec "$python" benchmarks/cifar10.py "${arguments[@]}"
fi
"$python" -m pytest -q -m gpu -p no:cacheprovider tests
for name in step noise label corruptions; do
  echo "== $name"
  "$python" "benchmarks/$name.py"
done
