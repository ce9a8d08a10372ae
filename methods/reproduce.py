"""No method: how a script beside this one starts, from whatever folder."""

import sys


def run(main) -> None:
    """evaluate.run, of evaluate.py, which stands with the others in the folder above."""
    sys.path.insert(0, sys.path[0] + "/..")
    import evaluate

    evaluate.run(main)
