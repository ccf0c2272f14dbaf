#!/usr/bin/env bash
# Checks and measurements that need a GPU, in one call, with the Python that is there (torch, timm and the rest of
# pyproject.toml installed or on PYTHONPATH). CIFAR10 and JUNK name the archives benchmarks/cifar10.py lays out;
# STEPS and SEEDS shorten a dry run.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
python="${PYTHON:-python3}"

"$python" -c "import torch, timm; print(torch.__version__, timm.__version__, torch.cuda.is_available() and torch.cuda.get_device_name())"
"$python" -m pytest -q -m gpu -p no:cacheprovider tests

arguments=(cifar10-4000 --labels 4000 --seeds ${SEEDS:-0})
[ -z "${CIFAR10:-}" ] || arguments+=(--data "$CIFAR10")
[ -z "${JUNK:-}" ] || arguments+=(--junk "$JUNK")
[ -z "${STEPS:-}" ] || arguments+=(--teacher.train.steps "$STEPS" --student.train.steps "$STEPS")
"$python" benchmarks/cifar10.py "${arguments[@]}"
