"""Golden numbers of HRPO's gates: the formulas of arXiv 2505.18454 in PyTorch, f64, with autograd's gradients.

    python tools/hrpo_golden.py            writes tests/golden/hrpo.json

The mixture is constant (detached), as in HRPO: its weights are the softmax at a temperature of what top-k and top-p
keep of the logits, divided by their 2-norm.
"""

import json
import math
from pathlib import Path

import torch

N, WIDTH, VOCABULARY = 4, 6, 61
TEMPERATURE, TOP_K, TOP_P = 0.5, 9, 0.95


def mixture(logits):
    """Kept ids, ascending, and p / |p|_2, of one row. Top-p acts on what top-k leaves, renormalised."""
    scaled = logits / TEMPERATURE
    kept = torch.topk(scaled, TOP_K).indices
    p = torch.softmax(scaled[kept], 0)
    order = torch.argsort(p, descending=True)
    mass = torch.cumsum(p[order], 0)
    count = int((mass < TOP_P).sum()) + 1
    ids = sorted(int(kept[i]) for i in order[:count])
    p = torch.softmax(scaled[ids], 0)
    return ids, p / p.norm()


def main():
    torch.manual_seed(20250518)
    double = {"dtype": torch.float64}
    table = torch.randn(VOCABULARY, WIDTH, **double).requires_grad_()
    logits = 3 * torch.randn(N, VOCABULARY, **double)
    tokens = torch.tensor([3, 17, 3, 60])
    weights = {}
    for gate in "ri":
        weights[f"W_{gate}"] = (0.7 * torch.randn(WIDTH, WIDTH, **double)).requires_grad_()
        weights[f"b_{gate}"] = (0.3 * torch.randn(WIDTH, **double)).requires_grad_()
    # Shares a^(1/r) of 0.98 to 0.999, where training begins, and two that have moved far.
    shares = torch.tensor([0.98, 0.985, 0.99, 0.999, 0.3, 0.9], **double)
    weights["Lambda"] = (-torch.log(torch.expm1(-torch.log(shares) / 8))).requires_grad_()

    mixtures = [mixture(row) for row in logits]
    soft = torch.stack([(p[:, None] * table.detach()[ids]).sum(0) for ids, p in mixtures])
    e = table[tokens]
    r = torch.sigmoid(e @ weights["W_r"].T + weights["b_r"])
    i = torch.sigmoid(e @ weights["W_i"].T + weights["b_i"])
    a = torch.exp(-8 * torch.nn.functional.softplus(-weights["Lambda"]) * r)
    x = a * e + torch.sqrt(1 - a**2) * (i * soft)
    dx = torch.randn(N, WIDTH, **double)
    (x * dx).sum().backward()

    flat = lambda tensor: [float(value) for value in tensor.detach().flatten()]
    golden = {
        "temperature": TEMPERATURE,
        "top_k": TOP_K,
        "top_p": TOP_P,
        "shares": flat(shares),
        "tokens": tokens.tolist(),
        "table": flat(table),
        "logits": flat(logits),
        "ids": [ids for ids, _ in mixtures],
        "p": [flat(p) for _, p in mixtures],
        "soft": flat(soft),
        "x": flat(x),
        "dx": flat(dx),
        "d_table": flat(table.grad),
        **{name: flat(tensor) for name, tensor in weights.items()},
        **{f"d_{name}": flat(tensor.grad) for name, tensor in weights.items()},
    }
    assert all(math.isfinite(value) for value in golden["x"])
    path = Path(__file__).parent.parent / "tests/golden/hrpo.json"
    path.write_text(json.dumps(golden) + "\n")
    print(f"{path}: mixtures of {[len(ids) for ids, _ in mixtures]} ids")


if __name__ == "__main__":
    main()
