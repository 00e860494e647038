"""Align a generator to a reward: `accelerate launch -m training.align --config FILE`.

The file contains defaults, which flags override. Its keys are the fields of `AlignArguments` and of the algorithm's
arguments. An interrupted run resumes with `--resume_from_checkpoint last`.
"""

import sys
from collections.abc import Sequence

from modeling_dina.options import exit_on_bad_input
from training.align.dry_run import print_dry_run
from training.align.run import complete, parse_run, prepare
from training.run_control import TERMINATED


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments of a run and start it, or print its cost with `--dry_run`."""
    with exit_on_bad_input():
        arguments, algorithm_arguments = parse_run(argv)
        if arguments.dry_run:
            return print_dry_run(arguments, algorithm_arguments)
        trainer = prepare(arguments, algorithm_arguments)
    if complete(trainer).was_terminated:
        sys.exit(TERMINATED)
    return None


if __name__ == "__main__":
    main()
