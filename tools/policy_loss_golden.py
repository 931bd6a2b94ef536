#!/usr/bin/env python3
"""Golden numbers of policy losses: writes tests/golden/policy_loss.json.

Independent of latch: padded matrices with masks and autograd in f64, the formulas as stated by
  TRL   trl/trainer/grpo_trainer.py   _compute_loss, _generate_and_score_completions
  verl  verl/trainer/ppo/core_algos.py  compute_policy_loss_vanilla, compute_policy_loss_gspo, agg_loss, kl_penalty
Needs torch. Run: python3 tools/policy_loss_golden.py
"""

import json
import math
import pathlib

import torch

torch.set_default_dtype(torch.float64)
GROUPS, K, MAX_LENGTH = 4, 4, 6
ROWS = GROUPS * K
LENGTHS = [3, 1, 6, 2, 4, 4, 5, 6, 2, 3, 1, 5, 6, 6, 2, 4]
REWARDS = [[1, 0, 0, 1], [0, 0, 1, 0], [1, 1, 1, 1], [1, 0.5, 0, 1]]


def batch():
    generator = torch.Generator().manual_seed(7)
    draw = lambda scale: scale * torch.randn(ROWS, MAX_LENGTH, generator=generator)
    old = -1.2 + draw(0.5)
    # Ratios from about 0.4 to 2.5, a few far outside, so that every bound is met.
    new = old + draw(0.35)
    new[4, 1] = old[4, 1] + 1.9
    new[1, 0] = old[1, 0] + 1.9
    new[7, 3] = old[7, 3] - 1.5
    reference = new + draw(0.4)
    mask = torch.zeros(ROWS, MAX_LENGTH)
    for row, length in enumerate(LENGTHS):
        mask[row, :length] = 1
    return new, old, reference, mask


def advantages(baseline, scale):
    rewards = torch.tensor(REWARDS)
    mean = rewards.mean(1, keepdim=True)
    if baseline == "leave_one_out":
        centred = torch.stack(
            [rewards[:, k] - torch.cat([rewards[:, :k], rewards[:, k + 1 :]], 1).mean(1) for k in range(K)], 1
        )
    else:
        centred = rewards - mean
    if scale == "group":  # TRL: torch std, ddof 1
        centred = centred / (rewards.std(1, keepdim=True) + 1e-4)
    if scale == "batch":
        centred = centred / (rewards.std() + 1e-4)
    return centred.reshape(-1, 1)


def trl_terms(new, old, reference, mask, A, *, low=0.2, high=0.2, level="token", delta=None, beta=0.0, kind="clip"):
    log_ratio = new - old
    if level == "sequence":
        log_ratio = ((log_ratio * mask).sum(-1) / mask.sum(-1).clamp(min=1.0)).unsqueeze(-1)
    coef_1 = torch.exp(log_ratio)
    if kind == "cispo":
        loss = -torch.clamp(coef_1, max=high).detach() * A * new
    elif kind == "sapo":
        t = torch.where(A > 0, 1.0, 1.05)
        loss = -torch.sigmoid(t * (coef_1 - 1)) * 4 / t * A
    else:
        coef_2 = torch.clamp(coef_1, 1 - low, 1 + high)
        if delta is not None:
            coef_1 = torch.clamp(coef_1, max=delta)
        loss = -torch.min(coef_1 * A, coef_2 * A)
    if beta:
        loss = loss + beta * (torch.exp(reference - new) - (reference - new) - 1)
    return loss


def verl_terms(new, old, reference, mask, A, *, low=0.2, high=0.2, dual=3.0, kl=None, beta=0.0):
    log_ratio = torch.clamp(new - old, min=-20.0, max=20.0)
    ratio = torch.exp(log_ratio)
    loss = torch.maximum(-A * ratio, -A * torch.clamp(ratio, 1 - low, 1 + high))
    loss = torch.where(A < 0, torch.min(-A * dual, loss), loss)
    if kl:
        d = torch.clamp(reference - new, min=-20, max=20)
        k3 = torch.clamp(torch.exp(d) - d - 1, min=-10, max=10)
        k2 = 0.5 * (new - reference).square()
        value = {"k1": new - reference, "k2": k2, "k3": k3, "k3+": k2 - k2.detach() + k3.detach()}[kl]
        loss = loss + beta * value
    return loss


def sequence_mean(loss, mask):
    return ((loss * mask).sum(-1) / mask.sum(-1).clamp(min=1.0)).mean()


def token_mean(loss, mask):
    return (loss * mask).sum() / mask.sum().clamp(min=1.0)


def local_token_mean(loss, mask, rows=8):
    runs = range(0, ROWS, rows)
    return sum(token_mean(loss[r : r + rows], mask[r : r + rows]) for r in runs) / len(runs)


def constant(loss, mask):
    return (loss * mask).sum() / (ROWS * MAX_LENGTH)


def group_sum(loss, mask):  # verl seq-mean-token-sum
    return (loss * mask).sum(-1).mean()


CASES = {
    "dropout_grpo": (("group_mean", None), trl_terms, {}, group_sum),
    "grpo": (("group_mean", "group"), trl_terms, dict(beta=0.04), sequence_mean),
    "bnpo": (("group_mean", "group"), trl_terms, {}, local_token_mean),
    "dr_grpo": (("group_mean", None), trl_terms, {}, constant),
    "dapo": (("group_mean", "group"), trl_terms, dict(high=0.28), token_mean),
    "rloo": (("leave_one_out", None), trl_terms, {}, group_sum),
    "gspo": (("group_mean", "group"), trl_terms, dict(low=3e-4, high=4e-4, level="sequence"), sequence_mean),
    "cispo": (("group_mean", "batch"), trl_terms, dict(high=5.0, kind="cispo"), token_mean),
    # Fields changed by hand.
    "dr_grpo, sapo": (("group_mean", None), trl_terms, dict(kind="sapo"), constant),
    "dapo, delta 1.5": (("group_mean", "group"), trl_terms, dict(high=0.28, delta=1.5), token_mean),
    "dapo, dual 3, k1": (("group_mean", "group"), verl_terms, dict(high=0.28, kl="k1", beta=0.1), token_mean),
    "dapo, dual 3, k2": (("group_mean", "group"), verl_terms, dict(high=0.28, kl="k2", beta=0.1), token_mean),
    "dapo, dual 3, k3": (("group_mean", "group"), verl_terms, dict(high=0.28, kl="k3", beta=0.1), token_mean),
    "dapo, dual 3, k3+": (("group_mean", "group"), verl_terms, dict(high=0.28, kl="k3+", beta=0.1), token_mean),
}


def main():
    new, old, reference, mask = batch()
    packed = lambda x: [x[row, n].item() for row in range(ROWS) for n in range(LENGTHS[row])]
    cases = {}
    for name, ((baseline, scale), terms, keywords, aggregate) in CASES.items():
        A = advantages(baseline, scale)
        leaf = new.clone().requires_grad_()
        loss = aggregate(terms(leaf, old, reference, mask, A.expand(ROWS, MAX_LENGTH), **keywords), mask)
        loss.backward()
        assert torch.all(leaf.grad[mask == 0] == 0) and math.isfinite(loss.item())
        cases[name] = {
            "advantages": A.flatten().tolist(),
            "loss": loss.item(),
            "coefficients": packed(leaf.grad),
        }
    golden = {
        "group": K,
        "max_length": MAX_LENGTH,
        "lengths": LENGTHS,
        "rewards": [[float(r) for r in group] for group in REWARDS],
        "log_probability": packed(new),
        "old": packed(old),
        "reference": packed(reference),
        "cases": cases,
    }
    path = pathlib.Path(__file__).resolve().parent.parent / "tests" / "golden" / "policy_loss.json"
    path.write_text(json.dumps(golden, indent=None, separators=(",", ":")) + "\n")
    for name, case in cases.items():
        norm = math.sqrt(sum(c * c for c in case["coefficients"]))
        print(f"{name:20} loss {case['loss']: .12f}  |coefficients| {norm:.12f}")


if __name__ == "__main__":
    main()
