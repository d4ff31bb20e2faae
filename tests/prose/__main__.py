"""``python -m tests.prose [PATH ...]``: check the covered paths, or those given; exit with 1 if there are findings."""

from __future__ import annotations

import sys

from tests.prose import check_config, check_paths, load_config


def main(arguments: list[str]) -> int:
    """Print the findings and return the exit code."""
    config = load_config()
    findings = list(check_paths(arguments, config.rules) if arguments else check_config(config))
    for finding in findings:
        print(finding)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
