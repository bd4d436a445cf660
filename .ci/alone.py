"""`python alone.py FILE COMMAND...`: run a command while nobody else runs one with the same file.

The lock belongs to the open file, which the command and its children inherit: it is free again
when the last of them has ended, however they end.
"""

import fcntl
import os
import sys

descriptor = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o666)
try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    sys.stderr.write("Another make is setting things up here; this one waits for it ...\n")
    fcntl.flock(descriptor, fcntl.LOCK_EX)
os.set_inheritable(descriptor, True)
os.execvp(sys.argv[2], sys.argv[2:])
