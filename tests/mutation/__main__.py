"""``python -m tests.mutation``: print the mutation score of each target; exit with 1 if one is under the threshold."""

from __future__ import annotations

import argparse
import sys
import time

from tests.mutation import MutationFailed, Target, change_of, copy_for, run

TARGETS = (
    Target(
        "resolver",
        (
            "proxy/conversations/resolver.py",
            "proxy/conversations/resolver_query.py",
            "proxy/conversations/*_rules.py",
            "proxy/conversations/fingerprints.py",
        ),
        ("tests/units/conversations", "tests/contracts/test_conversation_resolver.py"),
    ),
    Target(
        "live log",
        (
            "proxy/turns/live.py",
            "proxy/turns/turn_log.py",
            "proxy/turns/live_turns.py",
            "proxy/turns/log_memory.py",
            "proxy/turns/log_reader.py",
        ),
        (
            "tests/units/turns/test_live.py",
            "tests/units/turns/test_live_batches.py",
            "tests/units/turns/test_live_control.py",
            "tests/units/service/test_turns.py",
        ),
    ),
    Target("agent loop", ("proxy/agents/agent_loop.py",), ("tests/units/agents",)),
    Target(
        "stream parser",
        ("proxy/providers/openai/stream_parser.py", "proxy/providers/openai/stream_chunk.py"),
        ("tests/units/providers/openai", "tests/contracts/test_models.py"),
    ),
    Target(
        "tool call assembler",
        ("proxy/providers/openai/tool_call_assembler.py",),
        (
            "tests/units/providers/openai/test_tool_call_assembler.py",
            "tests/units/providers/openai/test_client_tool_calls.py",
            "tests/units/providers/openai/test_stream_parser.py",
        ),
    ),
    Target(
        "Responses stream",
        ("proxy/providers/openai/responses_stream.py",),
        (
            "tests/units/providers/openai/test_responses_stream.py",
            "tests/units/providers/openai/test_responses_reader.py",
        ),
    ),
    Target(
        "SSE",
        ("proxy/providers/http/sse.py", "proxy/wire/events/sse.py"),
        ("tests/units/providers/http/test_sse.py", "tests/units/wire/events/test_sse.py"),
    ),
    Target(
        "store",
        ("proxy/store/*.py", "proxy/store/sql/*.py"),
        (
            "tests/contracts/test_turn_repository.py",
            "tests/contracts/test_conversation_repository.py",
            "tests/contracts/test_turn_attendance.py",
            "tests/contracts/test_checkpoints.py",
            "tests/contracts/test_approvals.py",
            "tests/contracts/test_custom_agents.py",
            "tests/contracts/test_api_keys.py",
            "tests/units/store/sql",
        ),
        is_type_checked=False,
    ),
)


def main() -> int:
    """Return the exit status."""
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10, help="time for all targets together")
    parser.add_argument("--sample", type=int, default=40, help="mutants of each target")
    parser.add_argument(
        "--seed", type=int, default=0, help="the same seed selects the same mutants of the same code"
    )
    parser.add_argument("--threshold", type=float, default=85, help="lowest accepted score, in percent")
    parser.add_argument("--diff", action="store_true", help="print the change of each mutant that survived")
    parser.add_argument(
        "targets", nargs="*", metavar="target", help=", ".join(target.name for target in TARGETS)
    )
    options = parser.parse_args()
    if unknown := set(options.targets) - {target.name for target in TARGETS}:
        parser.error(f"unknown target: {', '.join(sorted(unknown))}")
    targets = [target for target in TARGETS if target.name in options.targets or not options.targets]
    end = time.monotonic() + options.minutes * 60
    is_failed = False
    for number, target in enumerate(targets):
        seconds = max(0.0, end - time.monotonic()) / (len(targets) - number)
        with copy_for(target) as copy:
            try:
                score = run(target, copy, size=options.sample, seed=options.seed, seconds=seconds)
            except MutationFailed as error:
                print(f"{target.name}: mutmut tested nothing\n{error}", flush=True)
                is_failed = True
                continue
            print(
                f"{target.name:<20} {score.percent:5.1f} %  {score.tested} of {score.mutants} mutants tested",
                flush=True,
            )
            for survivor in score.survivors:
                print(f"    survived: {survivor}")
                if options.diff:
                    print(change_of(copy, survivor), flush=True)
        is_failed = is_failed or score.percent < options.threshold
    return int(is_failed)


sys.exit(main())
