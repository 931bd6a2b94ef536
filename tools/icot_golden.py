#!/usr/bin/env python3
"""Golden numbers of stepwise internalisation: writes tests/golden/icot.json.

Independent of latch: the rules of arXiv 2405.14838 and of da03/Internalize_CoT_Step_by_Step src/train.py played out
step by step with a counter, on sequences that hold separators, as the release does (latch has closed formulas and no
separators). Needs nothing but Python. Run: python3 tools/icot_golden.py
"""

import json
import math
import pathlib

INFINITE = float("inf")
QUESTION, REASONING, ANSWER = 100, 200, 300  # token ids count up from these
SEPARATOR = 0


def law(smoothing, length=100):
    """P(extra removal = k); the last entry takes what is left."""
    table = [(1 - math.exp(-smoothing)) * math.exp(-smoothing * k) for k in range(length)]
    table[-1] += 1 - sum(table)
    return table


def play(epochs, batches, per_epoch, beyond, side, smooth, reset):
    """`batches`: of each step of an epoch, the examples as (reasoning tokens, extra removal)."""
    steps = len(batches)
    pace = int(round(steps / per_epoch))
    scheduled, counter, emptied_before, out = 0, 0, False, []
    for _ in range(epochs):
        if scheduled >= beyond:
            scheduled = INFINITE
        for batch in batches:
            previous = scheduled
            if counter == pace or pace == 0:
                scheduled += 1
                counter = 0
            counter += 1
            fresh = scheduled > previous and reset and not emptied_before
            if scheduled >= beyond:
                scheduled = INFINITE
            rows, emptied = [], False
            if scheduled > 0 or smooth:
                emptied = True
            for length, extra in batch:
                question = [QUESTION + i for i in range(3)] + [SEPARATOR]
                reasoning = [REASONING + i for i in range(length)]
                answer = [ANSWER, ANSWER + 1]
                sequence = question + reasoning + [SEPARATOR] + answer
                if scheduled > 0 or smooth:
                    first = len(question)
                    second = first + length
                    remove = scheduled + (extra if smooth else 0)
                    begin, end = (first, first + remove) if side == "left" else (second - remove, second)
                    begin, end = int(max(begin, first)), int(min(end, second))
                    if end - begin < length:
                        emptied = False
                    sequence = sequence[:begin] + sequence[end:]
                rows.append([token for token in sequence[len(question):] if token != SEPARATOR])
            emptied_before = emptied
            out.append({"scheduled": -1 if scheduled == INFINITE else scheduled, "reset": fresh, "trained": rows})
    return out


def main():
    lengths = [[(4, 0), (9, 1)], [(7, 2), (0, 0)], [(5, 0), (6, 0)], [(8, 3), (3, 0)], [(2, 0), (10, 0)]]
    cases = []
    for epochs, repeats, per_epoch, beyond, side, smooth, reset in [
        (4, 2, 8, 20, "left", True, True),
        (4, 2, 8, INFINITE, "right", True, True),
        (3, 1, 2, 5, "left", False, True),
        (3, 4, 3, 6, "right", True, False),
        (2, 1, 16, 9, "left", True, True),
        (3, 1, 0.4, INFINITE, "left", False, True),
    ]:
        batches = lengths * repeats
        cases.append(
            {
                "epochs": epochs,
                "batches": batches,
                "removal_per_epoch": per_epoch,
                "removal_max": 0 if beyond == INFINITE else beyond,
                "side": side,
                "smooth": smooth,
                "reset_optimizer": reset,
                "steps": play(epochs, batches, per_epoch, beyond, side, smooth, reset),
            }
        )
    out = pathlib.Path(__file__).parent.parent / "tests" / "golden" / "icot.json"
    out.write_text(json.dumps({"law": {"0.5": law(0.5), "4": law(4.0)}, "cases": cases}) + "\n")
    print(f"wrote {out}: {len(cases)} cases")


if __name__ == "__main__":
    main()
