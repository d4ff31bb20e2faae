"""Benchmark: costs of the server, compared with a byte forwarder and with a straightforward implementation.

``python -m bench`` (or ``make bench``) starts all processes on the loopback interface, takes less than two minutes,
and stops only processes that it started. ``docs/performance.md`` explains the results.
"""
