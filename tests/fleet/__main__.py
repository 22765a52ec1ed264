"""`python -m tests.fleet --seed 1 --minutes 10`: the history checker. As root. Status 1: a promise is broken.

A run that fails prints the history of the accounts that are concerned; the whole of it is in --log.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.fleet.run import Plan, fleet, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fleet", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--clients", type=int, default=3, help="customers with real tunnels and traffic")
    parser.add_argument("--sellers", type=int, default=3, help="threads that create, edit and delete")
    parser.add_argument("--log", type=Path, help="file for the whole history")
    asked = parser.parse_args()

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    plan = Plan(asked.seed, asked.minutes * 60, asked.nodes, asked.clients, asked.sellers, log=asked.log)
    logs = Path(f"/tmp/wirelane-fleet-{asked.seed}-logs")
    with fleet(plan.nodes, plan.clients, logs) as lab:
        outcome = run(lab, plan, say)
        print("\n".join(outcome.lines))
        if not outcome.held:
            print(outcome.history.report())
            raise SystemExit(1)
    print(f"seed {plan.seed}: all promises hold")
    return 0


if __name__ == "__main__":
    sys.exit(main())
