#!/usr/bin/env bash
# The tests; they need no network and no GPU. Arguments go to pytest: ./run_tests.sh tests/test_raven.py
set -euo pipefail
cd "$(dirname "$0")"
source ./setup.sh
exec "$PYTHON" -m pytest "$@"
