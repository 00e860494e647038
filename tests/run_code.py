"""`python -c`, in a folder that is given, as a module that `python -m` runs: FOLDER CODE ARGUMENTS."""

import os
import sys

import diffusers.utils.logging
import transformers.utils.logging

# Progress bars would come between the lines that the code prints.
for library in (diffusers, transformers):
    library.utils.logging.disable_progress_bar()
os.chdir(sys.argv[1])
code = sys.argv[2]
sys.argv[:] = ["-c", *sys.argv[3:]]
exec(compile(code, "<code>", "exec"))
