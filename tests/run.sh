#!/usr/bin/env bash
# Makes the environment and runs the linters and all tests, which build the documentation site too. Takes pytest's
# arguments: `bash tests/run.sh -m "not slow"` leaves out what takes more than a few seconds.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

missing=()
command -v chromedriver > /dev/null || missing+=(chromium chromium-driver) # the report is tested in a browser
python3 -c 'import ensurepip' 2> /dev/null || missing+=(python3-venv)
if ((${#missing[@]})); then
    export DEBIAN_FRONTEND=noninteractive
    (apt-get update -qq && apt-get install -y -qq "${missing[@]}") > /dev/null ||
        echo "Not installed, which takes root on Debian: ${missing[*]}. Without Chromium the report is not tested in a browser."
fi

python3 -m venv .venv
.venv/bin/pip install -q -e '.[test]'
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/python tools/lint.py
.venv/bin/pyrefly check --summary=none --min-severity error
OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 --dist worksteal "$@"
