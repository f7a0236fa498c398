#!/bin/bash
# Collects in .gpu/, which git ignores, what a machine with PyTorch and a GPU but without a network lacks: the wheels of
# requirements.txt, and the commit, since a copy of the files doesn't tell it.
#
#   bash tools/gpu/prepare.sh            in a clone; takes a minute. PYTHON names a Python that has pip.
set -euo pipefail
cd "$(dirname "$0")/../.."
"${PYTHON:-python3}" tools/gpu/fetch_wheels.py --python "${GPU_PYTHON:-3.12}" --out .gpu/wheels
git rev-parse HEAD >.gpu/commit
git diff --quiet HEAD || echo "with changes that are not committed" >>.gpu/commit
du -sh .gpu
