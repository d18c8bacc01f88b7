"What all tests share."
import signal

# a shell's background job starts with Ctrl-C ignored, and its children would inherit that
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN: signal.signal(signal.SIGINT, signal.default_int_handler)
