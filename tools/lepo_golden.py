#!/usr/bin/env python3
"""Golden numbers of LEPO's loss and of the densities of soft actions: writes tests/golden/lepo/loss.json.

Independent of latch: padded [B, T] matrices and autograd in f64. Formulas as the released code of LEPO has them
(YuyanZhou/lepo, src/trainers/lepo_trainer.py on top of TRL's GRPO trainer):

  rollout   y = softmax((top-k, top-p filtered logits / temperature + Gumbel noise) / tau) at the first positions
  latent    -A * sum_v y_v ln p_v, p the unfiltered, untempered softmax over the vocabulary; no ratio, no clip
  token     -min(rho A, clip(rho, 1 - 0.2, 1 + 0.2) A), rho = exp(ln p - ln p_old)
  A         (r - mean) / (std + 1e-4) of the row's group, std with ddof 1, under every aggregation
  loss      both terms in one masked matrix: bnpo, grpo, dr_grpo as TRL aggregates

The densities are torch.distributions': RelaxedOneHotCategorical (y) and Gumbel (g).
Needs torch. Run: python3 tools/lepo_golden.py
"""

import json
import pathlib

import torch
from torch.distributions import Gumbel, RelaxedOneHotCategorical

torch.set_default_dtype(torch.float64)
GROUPS, K, V, LATENTS, MAX_LENGTH = 2, 4, 11, 3, 8
ROWS = GROUPS * K
# Positions of each row, the soft ones included.
LENGTHS = [5, 4, 8, 6, 7, 8, 4, 5]
REWARDS = [[1, 0, 0, 1], [0, 0, 1, 0]]
TOP_K, TOP_P, TAU, TEMPERATURE = 5, 0.95, 0.4, 1.0


def filtered(logits):
    """Minus infinity where top-k, then top-p, reject."""
    kept = logits.topk(TOP_K, -1).values[..., -1:]
    logits = logits.masked_fill(logits < kept, float("-inf"))
    values, order = logits.sort(-1, descending=True)
    before = values.softmax(-1).cumsum(-1) - values.softmax(-1)
    rejected = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before >= TOP_P)
    return logits.masked_fill(rejected, float("-inf"))


def batch():
    generator = torch.Generator().manual_seed(11)
    draw = lambda *shape: torch.randn(*shape, generator=generator)
    old = 1.6 * draw(ROWS, MAX_LENGTH, V)
    new = old + 0.25 * draw(ROWS, MAX_LENGTH, V)
    tokens = torch.multinomial(old.softmax(-1).reshape(-1, V), 1, generator=generator).reshape(ROWS, MAX_LENGTH)
    # One soft position keeps a single id.
    old[2, 1, 4] += 12.0
    clean = filtered(old[:, :LATENTS] / TEMPERATURE)
    noise = -torch.log(-torch.log(torch.rand(ROWS, LATENTS, V, generator=generator)))
    # a of the kept ids, renormalised among them.
    g = clean.log_softmax(-1) + noise
    y = (g / TAU).softmax(-1)
    mask = torch.zeros(ROWS, MAX_LENGTH)
    for row, length in enumerate(LENGTHS):
        mask[row, :length] = 1
    return old, new, tokens, g, y, clean > float("-inf"), mask


def advantages():
    rewards = torch.tensor(REWARDS, dtype=torch.float64)
    centred = rewards - rewards.mean(1, keepdim=True)
    return (centred / (rewards.std(1, keepdim=True) + 1e-4)).reshape(-1, 1)


def terms(new, old, tokens, y):
    A = advantages().expand(ROWS, MAX_LENGTH)
    log_p = new.log_softmax(-1)
    of_token = log_p.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    old_of_token = old.log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    ratio = torch.exp(of_token - old_of_token)
    loss = -torch.min(ratio * A, ratio.clamp(0.8, 1.2) * A)
    latent = -A[:, :LATENTS] * (y * log_p[:, :LATENTS]).sum(-1)
    return torch.cat([latent, loss[:, LATENTS:]], 1), old_of_token


AGGREGATE = {
    "grpo": lambda loss, mask: ((loss * mask).sum(-1) / mask.sum(-1)).mean(),
    "bnpo": lambda loss, mask: (loss * mask).sum() / mask.sum(),
    # One row a device, as LEPO runs.
    "bnpo, 1": lambda loss, mask: sum((loss[r] * mask[r]).sum() / mask[r].sum() for r in range(ROWS)) / ROWS,
    "dr_grpo": lambda loss, mask: (loss * mask).sum() / (ROWS * MAX_LENGTH),
}


def densities(new, g, kept):
    """Log-densities of y and of g on the stored support, 0 for one kept id, and their gradients by the logits."""
    out = {}
    for name in ["concrete", "gumbel_g"]:
        leaf = new[:, :LATENTS].clone().requires_grad_()
        values = torch.zeros(ROWS, LATENTS)
        for row in range(ROWS):
            for at in range(LATENTS):
                ids = kept[row, at].nonzero().squeeze(-1)
                if len(ids) == 1:
                    continue
                a = leaf[row, at, ids].log_softmax(-1)
                if name == "concrete":
                    law = RelaxedOneHotCategorical(torch.tensor(TAU), logits=a, validate_args=False)
                    values[row, at] = law.log_prob((g[row, at, ids] / TAU).softmax(-1))
                else:
                    values[row, at] = Gumbel(a, torch.ones_like(a)).log_prob(g[row, at, ids]).sum()
        values.sum().backward()
        out[name] = {"values": values.flatten().tolist(), "gradient": leaf.grad.flatten().tolist()}
    return out


def main():
    old, new, tokens, g, y, kept, mask = batch()
    cases = {}
    for name, aggregate in AGGREGATE.items():
        leaf = new.clone().requires_grad_()
        matrix, old_of_token = terms(leaf, old, tokens, y)
        loss = aggregate(matrix, mask)
        loss.backward()
        assert torch.all(leaf.grad[mask == 0] == 0)
        cases[name] = {
            "loss": loss.item(),
            "terms": [matrix[row, at].item() for row in range(ROWS) for at in range(LENGTHS[row])],
            "gradient": [leaf.grad[row, at].tolist() for row in range(ROWS) for at in range(LENGTHS[row])],
        }
    packed = lambda x: [x[row, at].tolist() for row in range(ROWS) for at in range(LENGTHS[row])]
    counts = kept.sum(-1).flatten().tolist()
    assert 1 in counts and max(counts) == TOP_K
    supports = [kept[row, at].nonzero().squeeze(-1) for row in range(ROWS) for at in range(LATENTS)]
    places = [(row, at) for row in range(ROWS) for at in range(LATENTS)]
    golden = {
        "vocabulary": V,
        "latents": LATENTS,
        "capacity": TOP_K,
        "tau": TAU,
        "group": K,
        "max_length": MAX_LENGTH,
        "lengths": LENGTHS,
        "rewards": [[float(r) for r in group] for group in REWARDS],
        "advantages": advantages().flatten().tolist(),
        "logits": packed(new),
        "tokens": packed(tokens),
        "old": packed(old_of_token),
        "ids": [ids.tolist() for ids in supports],
        "g": [g[row, at, ids].tolist() for (row, at), ids in zip(places, supports)],
        "y": [y[row, at, ids].tolist() for (row, at), ids in zip(places, supports)],
        "cases": cases,
        "densities": densities(new, g, kept),
    }
    path = pathlib.Path(__file__).resolve().parent.parent / "tests" / "golden" / "lepo" / "loss.json"
    path.write_text(json.dumps(golden, indent=None, separators=(",", ":")) + "\n")
    for name, case in cases.items():
        print(f"{name:10} loss {case['loss']: .12f}")
    print("kept ids", counts)


if __name__ == "__main__":
    main()
