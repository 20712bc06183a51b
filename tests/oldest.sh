#!/usr/bin/env bash
# Runs the tests with the oldest versions that setup.py admits (tests/lower_bounds.txt), of which CI runs the newest.
# Takes a Python to use, by default python3.11, and pytest's arguments after it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${1:-python3.11}
"$python" -m venv .venv-oldest
.venv-oldest/bin/pip install -q -c tests/lower_bounds.txt -e '.[test]'
OMP_NUM_THREADS=1 .venv-oldest/bin/python -m pytest -n 2 --dist worksteal "${@:2}"
