"""Align a generator to a reward: `accelerate launch -m training.align --config FILE`.

The file gives defaults, flags have the last word: fields of `AlignArguments` and of the algorithm's own arguments. An
interrupted run goes on with `--resume_from_checkpoint last`.
"""

import sys
from collections.abc import Sequence

from training.align.dry_run import print_dry_run
from training.align.run import parse_run, run
from training.checkpoints import TERMINATED


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments of one run and make it, or tell what it would cost."""
    arguments, algorithm_arguments = parse_run(argv)
    if arguments.dry_run:
        print_dry_run(arguments, algorithm_arguments)
    elif run(arguments, algorithm_arguments).was_terminated:
        sys.exit(TERMINATED)


if __name__ == "__main__":
    main()
