"""What every test of this repository relies on, whatever started it."""

import signal

# a shell starts what runs in its background with Ctrl-C ignored, and so would be every process
# that a test starts and then ends with it
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
