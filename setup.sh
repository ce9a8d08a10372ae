# Sourced by run_all.sh and run_tests.sh: sets PYTHON to an interpreter that has the packages of requirements.txt.
# PYTHON=... names another interpreter: used as it is if it has the packages, else .venv is made with it.
export PYTHON=${PYTHON:-}
has_packages='import sys, importlib.util as u
sys.exit(not all(map(u.find_spec, "torch torchvision numpy tqdm matplotlib pytest".split())))'

if [ -z "$PYTHON" ] || ! "$PYTHON" -c "$has_packages"; then
    base=${PYTHON:-python3}
    PYTHON=$PWD/.venv/bin/python
    if ! cmp -s requirements.txt .venv/installed.txt; then # the copy is made last: a broken installation is taken up again
        "$base" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
            { echo "Python 3.11 or newer is needed: PYTHON=/path/to/python $0" >&2; exit 1; }
        "$base" -m venv .venv
        "$PYTHON" -m pip install --quiet -r requirements.txt
        cp requirements.txt .venv/installed.txt
    fi
fi
