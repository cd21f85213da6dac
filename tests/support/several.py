"""Starting a script as two processes."""

import os
import subprocess
import sys

ALONE = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")}


def torchrun(*words, cwd=None):
    """What two processes printed, and the exit code"""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*launch, *map(str, words)],
        cwd=cwd,
        env=ALONE | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    return done.stdout, done.returncode
