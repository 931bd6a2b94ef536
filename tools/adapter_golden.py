#!/usr/bin/env python3
"""Golden files of adapters: writes tests/golden/adapters, what PEFT says about the models of tests/golden.

    python tools/adapter_golden.py            # write
    python tools/adapter_golden.py --check    # make them again, compare within 1e-6, write nothing

Each folder holds an adapter as PEFT's save_pretrained writes it (A, B and whole matrices are random, so that all have
gradients to speak of) and, for cases of the base model's folder, NAME.out.safetensors: `logits`, `loss` and
`grad/TENSOR` for every tensor of the adapter under the name it has in adapter_model.safetensors (a tied matrix once, as
the embedding). Everything is computed in float64 and rounded to f32, as tools/golden.py does, whose passes are used.
Needs what tools/requirements-golden.txt and tools/requirements-adapters.txt list.
"""

import argparse
import json
import sys
import tempfile
import warnings
from pathlib import Path

import golden
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

OUT = golden.GOLDEN / "adapters"
F64 = torch.float64
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# name: base, cases, settings
ADAPTERS = {
    "gpt2": ("gpt2", ["plain", "latent", "masked", "soft"],
             dict(r=2, lora_alpha=5, target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True)),
    "llama": ("llama_llama3", ["plain", "latent", "soft"], dict(r=3, lora_alpha=6, target_modules=ALL)),
    "llama_whole": ("llama_llama3", ["latent"],
                    dict(r=1, lora_alpha=1, target_modules=["layers.1.self_attn.q_proj", "up_proj"],
                         modules_to_save=["embed_tokens", "lm_head"])),
    "qwen2": ("qwen2", ["plain", "latent_uneven", "masked"],
              dict(r=4, lora_alpha=8, use_rslora=True, target_modules=["q_proj", "v_proj", "down_proj"],
                   modules_to_save=["embed_tokens"], ensure_weight_tying=True)),
    "qwen3": ("qwen3", ["latent"], dict(r=5, lora_alpha=7, target_modules="all-linear")),
}


def short(name):
    """A parameter's name as in adapter_model.safetensors."""
    return name.replace(".modules_to_save.default", "").replace(".default", "")


def case_of(base, name):
    tensors = load_file(golden.GOLDEN / base / "cases" / f"{name}.in.safetensors")
    case = golden.Case(tensors["ids"].numpy(), tensors["labels"].numpy(),
                       {k[5:]: v for k, v in tensors.items() if k.startswith("mask.")})
    case.soft_ids, case.soft_weights = tensors.get("soft_ids"), tensors.get("soft_weights")
    return case


def cast(adapted, dtype):
    """Parameters alone: rotary frequencies stay as they are."""
    for parameter in adapted.parameters():
        parameter.data = parameter.data.to(dtype)


def probe(model, adapted, case):
    adapted.zero_grad(set_to_none=True)
    with golden.masked(model, case, F64):
        logits = golden.coconut(model, case, F64)
    loss = golden.mean_loss(logits, case.labels)
    loss.backward()
    out = {"logits": logits.detach(), "loss": loss.detach().reshape(1)}
    for name, parameter in adapted.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None), name
        if parameter.requires_grad:
            out[f"grad/{short(name)}"] = parameter.grad.detach().clone()
    return out


def generate(root):
    for name, (base, cases, settings) in ADAPTERS.items():
        folder = root / name
        model = AutoModelForCausalLM.from_pretrained(golden.GOLDEN / base, dtype=F64, attn_implementation="eager")
        model.eval()
        config = json.loads((golden.GOLDEN / base / "config.json").read_text())
        adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.0, bias="none", **settings))
        adapted.eval()
        cast(adapted, F64)
        for parameter_name, parameter in adapted.named_parameters():
            if not parameter.requires_grad:
                continue
            rng = golden.stream(name, "adapter", short(parameter_name))
            whole = ".lora_" not in parameter_name
            noise = torch.from_numpy(rng.standard_normal(parameter.shape)) * (0.1 if whole else 0.2)
            with torch.no_grad():
                parameter.copy_(((parameter if whole else 0) + noise).to(torch.float32).to(F64))
        adapted.peft_config["default"].base_model_name_or_path = base
        # In f32: these numbers are exact in it.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cast(adapted, torch.float32)
            adapted.save_pretrained(folder)
            cast(adapted, F64)
        (folder / "README.md").unlink(missing_ok=True)
        outs = {}
        with golden.exact(model, config):
            for case_name in cases:
                out = probe(model, adapted, case_of(base, case_name))
                quiet = min(v.abs().max().item() for k, v in out.items() if k.startswith("grad/"))
                assert quiet > 1e-4, f"{name}/{case_name}: a tensor has no gradient to speak of"
                save_file({k: v.to(torch.float32).contiguous() for k, v in out.items()},
                          folder / f"{case_name}.out.safetensors")
                outs[case_name] = out
        print(f"{name}: {len(cases)} cases, logits up to {max(o['logits'].abs().max().item() for o in outs.values()):.1f}",
              flush=True)


def check(tolerance=1e-6):
    with tempfile.TemporaryDirectory() as temporary:
        new = Path(temporary)
        generate(new)
        names = [{p.relative_to(r).as_posix() for p in r.rglob("*.safetensors")} for r in (OUT, new)]
        faults = [f"{n}: in one of the two only" for n in sorted(names[0] ^ names[1])]
        for n in sorted(names[0] & names[1]):
            fault = golden.compare_file(OUT / n, new / n, tolerance)
            faults.extend([f"{n}: {fault}"] if fault else [])
    print("\n".join(faults + [f"{len(names[0])} files, {len(faults)} differ"]))
    return 1 if faults else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare a fresh set with the committed one, write nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    golden.transformers.logging.set_verbosity_error()
    golden.transformers.logging.disable_progress_bar()
    if options.check:
        return check()
    generate(OUT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
