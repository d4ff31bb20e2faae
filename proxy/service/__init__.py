"""What a request does: open, attach to, cancel, run and record turns."""
