# Sourced by run_all.sh and run_tests.sh: sets PYTHON to an interpreter that has the packages of requirements.txt.
# PYTHON=... names another one: it is used as it is if it has the packages, else .venv is made with it.
given=${PYTHON:-python3}
command -v "$given" >/dev/null || { echo "no interpreter $given: name one by PYTHON=/path/to/python" >&2; exit 1; }
has_packages='import sys, importlib.util as u, importlib.metadata as m
sys.exit(not all(map(u.find_spec, "torch torchvision numpy tqdm matplotlib pytest".split())) or
         tuple(map(int, m.version("torch").split(".")[:2])) < (2, 6))'

if [ -z "${PYTHON:-}" ] || ! "$PYTHON" -c "$has_packages"; then
    PYTHON=$PWD/.venv/bin/python
    # The copy of requirements.txt is made last, so that a broken installation is taken up again.
    if ! cmp -s requirements.txt .venv/installed.txt; then
        "$given" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
            { echo "$given is too old: Python 3.11 or newer is needed, PYTHON=/path/to/python" >&2; exit 1; }
        echo "installing requirements.txt into .venv (about 6 GB, once)" >&2
        "$given" -m venv .venv
        "$PYTHON" -m pip install --quiet --requirement requirements.txt
        cp requirements.txt .venv/installed.txt
    fi
fi
