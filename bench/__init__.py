"""What the server costs, beside a proxy that only forwards bytes and beside what one would write first.

``python -m bench`` (or ``make bench``) starts everything on this machine's loopback, takes less than two minutes, and
stops only what it started. ``docs/performance.md`` tells what the figures mean.
"""
