"""What `run.py` and `run_streaming.py` share: settings, progress, output, interrupts and exit statuses."""
