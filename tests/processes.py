"""Running a worker script in one or two processes that talk to each other."""

import os
import signal
import socket
import subprocess
import sys


def launch(worker, settings, processes, timeout=300):
    """Run ``worker`` with the path ``settings``; more than one process by torchrun. Fails with what it printed."""
    launcher = []
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", f"--master_port={port}"]
    with subprocess.Popen(
        [sys.executable, *launcher, str(worker), str(settings)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            told, _ = process.communicate(timeout=timeout)
        except BaseException:
            process.send_signal(signal.SIGTERM)  # torchrun then ends its workers
            process.communicate(timeout=60)
            raise
    assert process.returncode == 0, told[-6000:]
