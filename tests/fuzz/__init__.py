"""Fuzzing of a running server: ``make fuzz``, see CONTRIBUTING.md.

Every target is a function of a ``Run``: it sends input that a seed determines until the time is over, and raises
``Finding`` for a wrong result. The server's log and resources are checked after each target.
"""
