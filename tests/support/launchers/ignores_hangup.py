"""Runs a stage worker with SIGHUP ignored, as `nohup` does."""

import signal

from heimdex_stage_worker.main import main

signal.signal(signal.SIGHUP, signal.SIG_IGN)
main()
