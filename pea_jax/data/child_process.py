"""Child processes that end with their parent."""

import multiprocessing
import os
import signal
import threading
import time


def end_with_parent(patience: float = 0.0) -> None:
    """End this process when its parent process has ended, for whatever reason.

    Args:
      patience: seconds for the process to end by itself after a SIGTERM; 0 sends none.
    """

    def watch() -> None:
        multiprocessing.parent_process().join()
        if patience:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(patience)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
