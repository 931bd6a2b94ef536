#!/usr/bin/env python3
"""Reference models and tensors for tests/golden, made with Hugging Face transformers.

    python tools/golden.py              write tests/golden again
    python tools/golden.py --check      regenerate elsewhere and compare with the committed files

Each model is a tiny one with random weights, saved as a folder that transformers opens.
Each case is a pair in the format of latch's `probe`: cases/NAME.in.safetensors, cases/NAME.out.safetensors.
tests/golden/README.md describes both; manifest.json lists them.

How a reference is computed:
  * The stored weights (f32, bf16 or f16) are upcast and everything runs in float64; only the results are rounded to f32.
    transformers rounds RMS norm, the attention softmax and the rotary angles to f32 even in a float64 model,
    so those three are replaced by the same formula without the rounding (`exact`).
  * Latent positions are filled by the multi-pass loop of Coconut: one full forward per latent step, nothing detached.

Each case is checked twice before it is written:
  * against `walk`, a forward of our own that shares no code with transformers: one position at a time, keys and values
    in lists, every mask applied by hand. Logits, loss and all gradients must agree to 1e-9.
  * against transformers as it comes, in float32. The difference goes into manifest.json (`f32_difference`): it is what
    an f32 implementation should be expected to differ by.

Left out on purpose: padding (rows have equal length), tokenizers, attention-probability masks.
"""

import argparse
import contextlib
import importlib
import json
import math
import os
import platform
import re
import sys
import tempfile
import types
import zlib
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import safetensors
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen2Config, Qwen3Config

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden"
LATENT, SOFT, IGNORE = -1, -2, -100
P = 0.25
GREEDY_TOKENS = 12
F64 = torch.float64


# ---------------------------------------------------------------------------------------------------------------------
# Models

class Spec:
    """One model folder: its config, how it is stored, and which cases it gets."""

    def __init__(self, config, why, cases, dtype=torch.float32, v4=False, shards=1, coconut_greedy=False):
        self.config, self.why, self.cases = config, why, cases
        self.dtype, self.v4, self.shards, self.coconut_greedy = dtype, v4, shards, coconut_greedy


ALL_CASES = ["plain", "latent", "latent_uneven", "masked", "soft"]


def specs():
    common = dict(num_hidden_layers=2, bos_token_id=1, eos_token_id=2)
    llama3 = dict(rope_type="llama3", rope_theta=100.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                  original_max_position_embeddings=64)
    return {
        "gpt2": Spec(
            GPT2Config(vocab_size=61, n_positions=40, n_embd=21, n_layer=2, n_head=3, bos_token_id=60, eos_token_id=60),
            "three heads of 7, tied, n_inner absent (4 x width)",
            ALL_CASES + ["latent_split"], coconut_greedy=True),
        "llama_llama3": Spec(
            LlamaConfig(vocab_size=67, hidden_size=36, intermediate_size=28, num_attention_heads=6,
                        num_key_value_heads=2, max_position_embeddings=512, rms_norm_eps=1e-5,
                        rope_parameters=llama3, **common),
            "grouped queries 3:1, untied, llama3 rope with one band kept, one blended, one divided; sequence past it",
            ALL_CASES + ["long"]),
        "llama_linear": Spec(
            LlamaConfig(vocab_size=61, hidden_size=20, intermediate_size=44, num_attention_heads=5,
                        max_position_embeddings=64, tie_word_embeddings=True, attention_bias=True, mlp_bias=True,
                        rope_parameters=dict(rope_type="linear", rope_theta=10000.0, factor=2.5), **common),
            "tied, biases on attention and MLP, linear rope, config.json in the transformers 4 form",
            ALL_CASES, v4=True),
        "llama_head_dim": Spec(
            LlamaConfig(vocab_size=67, hidden_size=24, intermediate_size=40, num_attention_heads=4,
                        num_key_value_heads=2, head_dim=10, max_position_embeddings=64, rms_norm_eps=1e-5, **common),
            "head_dim 10 where width / heads is 6, no biases, untied, default rope",
            ALL_CASES),
        "llama_bf16": Spec(
            LlamaConfig(vocab_size=61, hidden_size=16, intermediate_size=24, num_attention_heads=2,
                        num_key_value_heads=1, max_position_embeddings=64, **common),
            "weights stored in bf16", ["plain", "latent"], dtype=torch.bfloat16),
        "llama_f16": Spec(
            LlamaConfig(vocab_size=61, hidden_size=16, intermediate_size=24, num_attention_heads=2,
                        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True, **common),
            "weights stored in f16", ["plain", "latent"], dtype=torch.float16),
        "qwen2": Spec(
            Qwen2Config(vocab_size=67, hidden_size=24, intermediate_size=40, num_attention_heads=4,
                        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True,
                        rope_parameters=dict(rope_type="default", rope_theta=1000000.0), **common),
            "biases on q, k and v only, tied", ALL_CASES),
        "qwen3": Spec(
            Qwen3Config(vocab_size=61, hidden_size=24, intermediate_size=40, num_attention_heads=4,
                        num_key_value_heads=2, head_dim=10, max_position_embeddings=64,
                        rope_parameters=dict(rope_type="default", rope_theta=1000000.0), **common),
            "norms on q and k, head_dim 10, untied, two shards", ALL_CASES, shards=2, coconut_greedy=True),
    }


def stream(*name):
    """A generator for one named thing. RandomState's stream is frozen by numpy, so files can be made again anywhere."""
    return np.random.RandomState(zlib.crc32("/".join(name).encode()))


def initialise(model, name):
    """Random weights away from every special value: gains not 1, biases not 0, logits spread over several nats."""
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            x = stream(name, key).standard_normal(tuple(parameter.shape))
            if parameter.dim() == 1:
                x = 1.0 + 0.3 * x if "norm" in key or "ln_" in key and key.endswith("weight") else 0.2 * x
            elif "wte" in key or "embed_tokens" in key:
                x = 0.45 * x
            elif "wpe" in key:
                x = 0.3 * x
            elif "lm_head" in key:
                x = 0.5 * x
            else:
                fan_in = parameter.shape[0] if model.config.model_type == "gpt2" else parameter.shape[1]
                x = 1.2 / math.sqrt(fan_in) * x
            parameter.copy_(torch.from_numpy(x))


def to_v4(config):
    """The same config.json as transformers 4 wrote it: rope at the top level, torch_dtype."""
    config = dict(config)
    rope = dict(config.pop("rope_parameters"))
    config["rope_theta"] = rope.pop("rope_theta")
    kind = rope.pop("rope_type")
    if kind == "default":
        config["rope_scaling"] = None
    elif kind == "linear":
        config["rope_scaling"] = {"type": "linear", **rope}  # the older key; transformers 4 read both
    else:
        config["rope_scaling"] = {"rope_type": kind, **rope}
    if config.get("head_dim") == config["hidden_size"] // config["num_attention_heads"]:
        del config["head_dim"]  # older files have none
    config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = "4.46.0"
    return dict(sorted(config.items()))


def write_json(path, value):
    text = json.dumps(value, indent=2)
    text = re.sub(r"\[[-\d,\s]+\]", lambda m: re.sub(r"\s+", " ", m[0]).replace("[ ", "[").replace(" ]", "]"), text)
    path.write_text(text + "\n")


def make_model(name, spec, folder):
    """Saves the folder. Where rope is configured, config-v4.json and config-v5.json hold both forms of it."""
    spec.config.architectures = None
    model = AutoModelForCausalLM.from_config(spec.config, dtype=torch.float32, attn_implementation="eager")
    initialise(model, name)
    model.to(spec.dtype)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    model.save_pretrained(folder, max_shard_size=size if spec.shards == 1 else size * 6 // 10)
    found = sorted(p.name for p in folder.glob("model*.safetensors"))
    assert len(found) == spec.shards, found
    config = json.loads((folder / "config.json").read_text())
    if "rope_parameters" in config:
        forms = {"config-v4.json": to_v4(config), "config-v5.json": config}
        ids = torch.arange(30)[None] % config["vocab_size"]
        outs = []
        for file, form in forms.items():
            write_json(folder / "config.json", form)
            write_json(folder / file, form)
            with torch.no_grad():
                outs.append(load(folder, F64)(ids).logits)
        assert torch.equal(*outs), f"{name}: transformers reads the two forms of config.json differently"
        used = "config-v4.json" if spec.v4 else "config-v5.json"
        write_json(folder / "config.json", forms[used])
        (folder / used).unlink()


def load(folder, dtype):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    return model.eval()


# ---------------------------------------------------------------------------------------------------------------------
# Cases

class Case:
    """Inputs of one probe: ids, labels, and perhaps masks and soft positions."""

    def __init__(self, ids, labels, masks=None, soft_ids=None, soft_weights=None):
        self.ids, self.labels = torch.from_numpy(ids), torch.from_numpy(labels)
        self.masks = masks or {}
        self.soft_ids, self.soft_weights = soft_ids, soft_weights

    def save(self, path):
        tensors = {"ids": self.ids, "labels": self.labels, **{f"mask.{k}": v for k, v in self.masks.items()}}
        if self.soft_ids is not None:
            tensors |= {"soft_ids": self.soft_ids, "soft_weights": self.soft_weights}
        save_file(tensors, path, metadata={"p": str(P)} if self.masks else None)

    def factor(self, site, dtype):
        """keep / (1 - p) for one site, [rows, width], or None."""
        mask = self.masks.get(site)
        return None if mask is None else mask.to(dtype) / (1.0 - P)


def make_case(name, case, config, layers, width, ffn):
    rng = stream(name, "case", case)
    rows, length = {"plain": (2, 11), "latent": (2, 13), "latent_uneven": (3, 12), "latent_split": (2, 12),
                    "masked": (2, 13), "soft": (2, 14), "long": (1, 150)}[case]
    ids = rng.randint(0, config.vocab_size, size=(rows, length)).astype(np.int64)
    labels = ids.copy()
    if case == "plain":
        labels[:, 4] = IGNORE  # a hole, and a label at position 0, which the shift drops
        labels[1, 9:] = IGNORE
        return Case(ids, labels)
    if case in ("latent", "masked"):
        ids[:, 4:7] = LATENT
        labels[:, :8] = IGNORE  # the position after the last latent is END: read, not predicted
    elif case == "latent_uneven":
        ids[0, 4:7] = LATENT
        ids[1, 6] = LATENT
        ids[2, 5:7] = LATENT
        labels[:, :8] = IGNORE
    elif case == "latent_split":
        ids[0, [2, 3, 7]] = LATENT  # two groups of latents in one row, trained labels between them
        ids[1, [1, 5, 6]] = LATENT
        labels[ids == LATENT] = IGNORE
        labels[:, :2] = IGNORE
    elif case == "long":
        ids[:, 70:72] = LATENT
        ids[:, 139:142] = LATENT
        labels[:, :60] = IGNORE
        labels[ids == LATENT] = IGNORE
    masks, soft_ids, soft_weights = {}, None, None
    if case == "masked":
        sites = {"0.emb": width, "0.latent": width}
        for layer in range(layers):
            sites |= {f"{layer}.attn_out": width, f"{layer}.mlp_hid": ffn, f"{layer}.mlp_out": width}
        masks = {site: torch.from_numpy((rng.random_sample((rows, w)) >= P).astype(np.uint8))
                 for site, w in sites.items()}
    if case == "soft":
        ids[0, [3, 4, 9]] = SOFT
        ids[1, [3, 10]] = SOFT
        ids[:, 5:8] = LATENT
        labels[:, :9] = IGNORE
        labels[ids == SOFT] = IGNORE
        soft = ids == SOFT
        choice = np.stack([rng.permutation(config.vocab_size)[:3] for _ in range(rows * length)])
        share = np.exp(rng.standard_normal((rows, length, 3)))
        share /= share.sum(-1, keepdims=True)
        soft_ids = torch.from_numpy(choice.reshape(rows, length, 3).astype(np.int64) * soft[..., None])
        soft_weights = torch.from_numpy((share * soft[..., None]).astype(np.float32))
    return Case(ids, labels, masks, soft_ids, soft_weights)


def mean_loss(logits, labels):
    """Logits of position t against labels[t + 1], mean over the labels that are not -100."""
    logp = torch.log_softmax(logits[:, :-1], dim=-1)
    target = labels[:, 1:]
    picked = logp.gather(-1, target.clamp(min=0)[..., None])[..., 0]
    trained = target != IGNORE
    return -picked[trained].sum() / trained.sum()


# ---------------------------------------------------------------------------------------------------------------------
# transformers in float64

def rope_frequencies(config, dim):
    """Inverse frequencies in float64 from a config.json of either form."""
    rope = config.get("rope_parameters") or {**(config.get("rope_scaling") or {}), "rope_theta": config["rope_theta"]}
    kind = rope.get("rope_type", rope.get("type", "default"))
    inverse = rope["rope_theta"] ** (-torch.arange(0, dim, 2, dtype=F64) / dim)
    if kind == "default":
        return inverse
    if kind == "linear":
        return inverse / rope["factor"]
    assert kind == "llama3", kind
    turns = rope["original_max_position_embeddings"] * inverse / (2 * math.pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    keep = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return inverse * (keep + (1.0 - keep) / rope["factor"])


def exact_norm(self, x):
    return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))


def exact_attention(module, query, key, value, attention_mask, scaling, dropout=0.0, **_):
    groups = module.num_key_value_groups
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(2, 3) * scaling
    weights = torch.softmax(scores if attention_mask is None else scores + attention_mask, dim=-1)
    return (weights @ value).transpose(1, 2).contiguous(), weights


@contextlib.contextmanager
def exact(model, config):
    """Keeps a float64 model in float64: RMS norm, softmax and rotary angles without a detour through f32."""
    if config["model_type"] == "gpt2":
        yield
        return
    code = importlib.import_module(type(model).__module__)
    rotary = model.model.rotary_emb
    inverse = rope_frequencies(config, model.model.layers[0].self_attn.head_dim)
    assert torch.allclose(inverse.float(), rotary.inv_freq, rtol=1e-6, atol=0), "rope formula differs"
    assert rotary.attention_scaling == 1.0

    def angles(self, x, position_ids):
        angle = torch.cat([position_ids[..., None].to(F64) * inverse] * 2, dim=-1)
        return angle.cos(), angle.sin()

    rotary.forward = types.MethodType(angles, rotary)
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = types.MethodType(exact_norm, module)
    before, code.eager_attention_forward = code.eager_attention_forward, exact_attention
    try:
        yield
    finally:
        code.eager_attention_forward = before


def block_parts(model):
    """Per layer: the module that ends attention and the one that ends the MLP."""
    if model.config.model_type == "gpt2":
        return [(layer.attn.c_proj, layer.mlp.c_proj) for layer in model.transformer.h]
    return [(layer.self_attn.o_proj, layer.mlp.down_proj) for layer in model.model.layers]


@contextlib.contextmanager
def masked(model, case, dtype):
    """Multiplies the masks in through hooks."""
    hooks = []

    def after(module, site):
        factor = case.factor(site, dtype)
        if factor is not None:
            hooks.append(module.register_forward_hook(lambda _m, _i, out: out * factor[:, None]))

    def before(module, site):
        factor = case.factor(site, dtype)
        if factor is not None:
            hooks.append(module.register_forward_pre_hook(lambda _m, args: (args[0] * factor[:, None],)))

    for layer, (attention, mlp) in enumerate(block_parts(model)):
        after(attention, f"{layer}.attn_out")
        before(mlp, f"{layer}.mlp_hid")
        after(mlp, f"{layer}.mlp_out")
    if model.config.model_type == "gpt2":
        after(model.transformer.drop, "0.emb")  # the dropout module sees wte + wpe
    else:
        factor = case.factor("0.emb", dtype)
        if factor is not None:
            hooks.append(model.model.register_forward_pre_hook(
                lambda _m, args, kw: (args, {**kw, "inputs_embeds": kw["inputs_embeds"] * factor[:, None]}),
                with_kwargs=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def coconut(model, case, dtype):
    """The multi-pass forward: every latent column costs one forward over all positions before it. Returns logits."""
    table = model.get_input_embeddings().weight
    inputs = table[case.ids.clamp(min=0)]
    if case.soft_ids is not None:
        mixture = (case.soft_weights.to(dtype)[..., None] * table[case.soft_ids]).sum(2)
        inputs = torch.where((case.ids == SOFT)[..., None], mixture, inputs)
    gate = case.factor("0.latent", dtype)
    columns = []
    for t in range(case.ids.shape[1]):
        column, latent = inputs[:, t], case.ids[:, t] == LATENT
        if latent.any():
            out = model.base_model(inputs_embeds=torch.stack(columns, 1), use_cache=False, output_hidden_states=True)
            z = out.hidden_states[-1][:, -1]
            assert torch.equal(z, out.last_hidden_state[:, -1])  # after the final norm
            column = torch.where(latent[:, None], z if gate is None else z * gate, column)
        columns.append(column)
    hidden = model.base_model(inputs_embeds=torch.stack(columns, 1), use_cache=False).last_hidden_state
    return model.get_output_embeddings()(hidden)


def probe(model, case, dtype):
    """What latch's probe writes, by autograd through every pass."""
    model.zero_grad(set_to_none=True)
    with masked(model, case, dtype):
        logits = coconut(model, case, dtype)
    loss = mean_loss(logits, case.labels)
    loss.backward()
    out = {"logits": logits.detach(), "loss": loss.detach().reshape(1)}
    for name, parameter in model.named_parameters():  # a tied head is listed once, as the embedding
        out[f"grad/{name}"] = parameter.grad.detach().clone()
    return out


# ---------------------------------------------------------------------------------------------------------------------
# The same by hand

def walk(config, weights, case):
    """Logits without transformers: rows and positions one at a time, keys and values in lists, masks where they belong."""
    gpt2 = config["model_type"] == "gpt2"
    layers = config["n_layer" if gpt2 else "num_hidden_layers"]
    heads = config["n_head" if gpt2 else "num_attention_heads"]
    width = config["n_embd" if gpt2 else "hidden_size"]
    kv_heads = heads if gpt2 else config.get("num_key_value_heads") or heads
    dim = config.get("head_dim") or width // heads
    frequencies = None if gpt2 else rope_frequencies(config, dim)
    table = weights["transformer.wte.weight" if gpt2 else "model.embed_tokens.weight"]
    head = table if config.get("tie_word_embeddings", gpt2) else weights["lm_head.weight"]

    def layer_norm(x, name):
        x = x - x.mean()
        return x / torch.sqrt(x.square().mean() + config["layer_norm_epsilon"]) * weights[name + ".weight"] \
            + weights[name + ".bias"]

    def rms_norm(x, name):
        return x / torch.sqrt(x.square().mean(-1, keepdim=True) + config["rms_norm_eps"]) * weights[name + ".weight"]

    def linear(x, name):
        w, b = weights[name + ".weight"], weights.get(name + ".bias")
        y = x @ w if gpt2 else w @ x
        return y if b is None else y + b

    def rotate(x, position):
        first, second = x[:, :dim // 2], x[:, dim // 2:]
        c, s = torch.cos(position * frequencies), torch.sin(position * frequencies)
        return torch.cat([first * c - second * s, second * c + first * s], dim=1)

    def attend(query, keys, values):
        parts = []
        for h in range(heads):
            g = h * kv_heads // heads
            scores = torch.stack([k[g] for k in keys]) @ query[h] / math.sqrt(dim)
            parts.append(torch.softmax(scores, 0) @ torch.stack([v[g] for v in values]))
        return torch.cat(parts)

    rows = []
    for row in range(case.ids.shape[0]):
        def gate(x, site):
            factor = case.factor(site, F64)
            return x if factor is None else x * factor[row]

        cache = [([], []) for _ in range(layers)]
        logits, z = [], None
        for t, token in enumerate(case.ids[row].tolist()):
            if token == LATENT:
                x = gate(z, "0.latent")
            elif token == SOFT:
                x = sum(w * table[i] for w, i in zip(case.soft_weights[row, t].to(F64), case.soft_ids[row, t]))
            else:
                x = table[token]
            x = gate(x + weights["transformer.wpe.weight"][t] if gpt2 else x, "0.emb")
            for layer in range(layers):
                keys, values = cache[layer]
                if gpt2:
                    at = f"transformer.h.{layer}"
                    q, k, v = linear(layer_norm(x, at + ".ln_1"), at + ".attn.c_attn").view(3, heads, dim)
                else:
                    at = f"model.layers.{layer}"
                    n = rms_norm(x, at + ".input_layernorm")
                    q, k, v = (linear(n, f"{at}.self_attn.{p}_proj").view(-1, dim) for p in "qkv")
                    if config["model_type"] == "qwen3":
                        q, k = (rms_norm(y, f"{at}.self_attn.{p}_norm") for p, y in (("q", q), ("k", k)))
                    q, k = rotate(q, t), rotate(k, t)
                keys.append(k)
                values.append(v)
                a = linear(attend(q, keys, values), at + (".attn.c_proj" if gpt2 else ".self_attn.o_proj"))
                x = x + gate(a, f"{layer}.attn_out")
                if gpt2:
                    u = linear(layer_norm(x, at + ".ln_2"), at + ".mlp.c_fc")
                    u = 0.5 * u * (1 + torch.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u ** 3)))
                else:
                    n = rms_norm(x, at + ".post_attention_layernorm")
                    u = linear(n, at + ".mlp.gate_proj")
                    u = u * torch.sigmoid(u) * linear(n, at + ".mlp.up_proj")
                m = linear(gate(u, f"{layer}.mlp_hid"), at + (".mlp.c_proj" if gpt2 else ".mlp.down_proj"))
                x = x + gate(m, f"{layer}.mlp_out")
            z = layer_norm(x, "transformer.ln_f") if gpt2 else rms_norm(x, "model.norm")
            logits.append(head @ z)
        rows.append(torch.stack(logits))
    return torch.stack(rows)


def probe_by_hand(config, tensors, case):
    weights = {k: v.to(F64).requires_grad_() for k, v in tensors.items()}
    logits = walk(config, weights, case)
    loss = mean_loss(logits, case.labels)
    loss.backward()
    return {"logits": logits.detach(), "loss": loss.detach().reshape(1)} | {
        f"grad/{k}": v.grad for k, v in weights.items()}


def difference(a, b, keys):
    """Largest |a - b| / max(1, |b|)."""
    return max(((a[k].to(F64) - b[k].to(F64)).abs() / b[k].to(F64).abs().clamp(min=1.0)).max().item() for k in keys)


# ---------------------------------------------------------------------------------------------------------------------
# Greedy decoding

def pick(logits, gaps, taken, banned):
    """The largest logit of the last position, its lead over the second kept in `gaps`."""
    top = logits[0, -1].topk(2)
    gaps.append((top.values[0] - top.values[1]).item())
    taken.append(top.indices[0].item())
    return taken[-1] != banned


def greedy(name, model, coconut_too):
    """A prompt whose continuation is decided by a clear margin at each token and does not meet the end token."""
    vocab, stop = model.config.vocab_size, model.config.eos_token_id
    result = {}
    for kind in ["plain"] + ["coconut"] * coconut_too:
        for attempt in range(1000):
            rng = stream(name, "greedy", kind, str(attempt))
            prompt = rng.randint(3, vocab - 3, size=5).tolist()
            latents, after = (3, [rng.randint(3, vocab - 3)]) if kind == "coconut" else (0, [])
            ids = torch.tensor([prompt + [LATENT] * latents + after])
            gaps, taken, good = [], [], True
            with torch.no_grad():
                while good and len(taken) < GREEDY_TOKENS:
                    row = torch.cat([ids, torch.tensor([taken], dtype=torch.int64)], 1)
                    good = pick(coconut(model, Case(row.numpy(), row.numpy()), F64), gaps, taken, stop)
            if good and min(gaps) > 0.02 and len(set(taken)) > 3:
                break
        else:
            raise RuntimeError(f"{name}: no usable prompt")
        entry = {"prompt": prompt, "tokens": taken, "smallest_lead": round(min(gaps), 4)}
        if kind == "coconut":
            entry = {"prompt": prompt, "latents": latents, "after": after, **entry}
        else:
            said = model.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
                                  max_new_tokens=GREEDY_TOKENS, do_sample=False, pad_token_id=0)
            assert said[0, len(prompt):].tolist() == taken, "generate disagrees"
        result[kind] = entry
    return result


# ---------------------------------------------------------------------------------------------------------------------
# Everything

def generate_all(root):
    manifest = {
        "made_by": "tools/golden.py",
        "versions": {"python": platform.python_version(), "torch": torch.__version__.split("+")[0],
                     "transformers": transformers.__version__, "safetensors": safetensors.__version__,
                     "numpy": np.__version__},
        "reference": "stored weights upcast to float64, computed in float64, stored as f32",
        "f32_difference": "largest |f32 - f64| / max(1, |f64|) of transformers itself in float32, eager attention",
        "models": {},
    }
    for name, spec in specs().items():
        folder = root / name
        (folder / "cases").mkdir(parents=True)
        make_model(name, spec, folder)
        config = json.loads((folder / "config.json").read_text())
        stored = {}
        for shard in sorted(folder.glob("model*.safetensors")):
            stored |= load_file(shard)
        model, plain_f32 = load(folder, F64), load(folder, torch.float32)
        layers = len(block_parts(model))
        ffn = block_parts(model)[0][1].weight.shape[0 if config["model_type"] == "gpt2" else 1]
        width = model.get_input_embeddings().weight.shape[1]
        entry = {"why": spec.why, "config_form": "transformers 4" if spec.v4 else "transformers 5",
                 "stored": str(spec.dtype).split(".")[1], "tied": bool(model.config.tie_word_embeddings),
                 "parameters": sum(v.numel() for v in stored.values()), "cases": {}}
        with exact(model, config):
            for case_name in spec.cases:
                case = make_case(name, case_name, model.config, layers, width, ffn)
                out = probe(model, case, F64)
                assert {k[5:] for k in out if k.startswith("grad/")} == set(stored), "parameter names differ from the file"
                hand = probe_by_hand(config, stored, case)
                gap = difference(out, hand, out)
                assert gap < 1e-9, f"{name}/{case_name}: the forward by hand differs by {gap:.1e}"
                quiet = min(v.abs().max().item() for k, v in out.items() if k.startswith("grad/"))
                assert quiet > 1e-4, f"{name}/{case_name}: a parameter has no gradient to speak of"
                case.save(folder / "cases" / f"{case_name}.in.safetensors")
                save_file({k: v.to(torch.float32).contiguous() for k, v in out.items()},
                          folder / "cases" / f"{case_name}.out.safetensors")
                entry["cases"][case_name] = {
                    "rows": case.ids.shape[0], "positions": case.ids.shape[1],
                    "latents": (case.ids == LATENT).sum(1).tolist(), "soft": (case.ids == SOFT).sum(1).tolist(),
                    "masks": sorted(case.masks), "loss": round(out["loss"].item(), 6),
                    "logits_std": round(out["logits"].std().item(), 2)}
        # The patched attention is undone here, so this is transformers as it comes.
        for case_name, listed in entry["cases"].items():
            case = make_case(name, case_name, model.config, layers, width, ffn)
            want = load_file(folder / "cases" / f"{case_name}.out.safetensors")
            have = probe(plain_f32, case, torch.float32)
            listed["f32_difference"] = {
                "logits": float(f"{difference(have, want, ['logits']):.1e}"),
                "gradients": float(f"{difference(have, want, [k for k in want if k.startswith('grad/')]):.1e}")}
            assert max(listed["f32_difference"].values()) < 2e-4, (name, case_name, listed)
            if case_name == "plain":
                with torch.no_grad():
                    theirs = plain_f32(case.ids, labels=case.labels).loss.item()
                assert abs(theirs - listed["loss"]) < 1e-4, "the loss is not transformers' loss"
        with exact(model, config):
            write_json(folder / "greedy.json", greedy(name, model, spec.coconut_greedy))
        entry["files"] = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
        manifest["models"][name] = entry
        print(f"{name}: {len(spec.cases)} cases, {entry['parameters']} parameters", flush=True)
    write_json(root / "manifest.json", manifest)


def compare_file(old, new, tolerance):
    """A sentence about the first difference, or None."""
    if old.suffix == ".json":
        drop = ("f32_difference", "versions", "transformers_version")

        def strip(x):
            return {k: strip(v) for k, v in x.items() if k not in drop} if isinstance(x, dict) else x
        same = strip(json.loads(old.read_text())) == strip(json.loads(new.read_text()))
        return None if same else "differs"
    a, b = load_file(old), load_file(new)
    if set(a) != set(b):
        return f"tensors {sorted(set(a) ^ set(b))} are in one of the two only"
    with safe_open(old, "pt") as x, safe_open(new, "pt") as y:
        if x.metadata() != y.metadata():
            return "metadata differs"
    for key in sorted(a):
        if a[key].dtype != b[key].dtype or a[key].shape != b[key].shape:
            return f"{key}: {a[key].dtype} {list(a[key].shape)} became {b[key].dtype} {list(b[key].shape)}"
        x, y = a[key].to(F64), b[key].to(F64)
        bad = (x - y).abs() > tolerance * x.abs().clamp(min=1.0)
        if bad.any():
            return f"{key}: {int(bad.sum())} of {x.numel()} values differ, at most by {(x - y).abs().max():.2e}"
    return None


def check(tolerance=1e-6):
    with tempfile.TemporaryDirectory() as temporary:
        new = Path(temporary)
        generate_all(new)
        names = [{p.relative_to(r).as_posix() for p in r.rglob("*") if p.is_file()} - {"README.md"} for r in (GOLDEN, new)]
        faults = [f"{n}: only committed" for n in sorted(names[0] - names[1])]
        faults += [f"{n}: only regenerated" for n in sorted(names[1] - names[0])]
        for n in sorted(names[0] & names[1]):
            fault = compare_file(GOLDEN / n, new / n, tolerance)
            if fault:
                faults.append(f"{n}: {fault}")
    for fault in faults:
        print(fault)
    print(f"{len(names[0] & names[1])} files compared, {len(faults)} differ")
    return 1 if faults else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare a fresh set with the committed one, write nothing")
    parser.add_argument("--out", type=Path, default=GOLDEN, help="where to write (default tests/golden)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if options.check:
        return check()
    if options.out == GOLDEN:
        for name in specs():
            for old in sorted((GOLDEN / name).rglob("*"), reverse=True):
                old.rmdir() if old.is_dir() else old.unlink()
    generate_all(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
