#!/usr/bin/env python3
"""Opens an adapter's folder with PEFT and prints what it finds: does an adapter that latch saved open elsewhere?

    python tools/check_peft_folder.py BASE ADAPTER
    python tools/check_peft_folder.py BASE ADAPTER --probe in.safetensors out.safetensors
    python tools/check_peft_folder.py BASE ADAPTER --merged DIR

With --probe the `logits` that `probe --model BASE --adapter ADAPTER --input in --output out` wrote are compared with
PEFT's, in float32; with --merged the logits of a folder that latch merged. Exits 1 where a tensor is missing or
unexpected, logits are not finite, the adapter does nothing, or a comparison fails.
Needs what tools/requirements-golden.txt and tools/requirements-adapters.txt list.
"""

import argparse
import os
import sys
import warnings
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("base", type=Path, metavar="BASE")
    parser.add_argument("adapter", type=Path, metavar="ADAPTER")
    parser.add_argument("--probe", type=Path, nargs=2, metavar=("IN", "OUT"), help="input and output of latch's probe")
    parser.add_argument("--merged", type=Path, metavar="DIR", help="a folder into which latch merged the adapter")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="allowed |a - b| / max(1, |b|) (default 1e-4)")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    def load(folder):
        return AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True).eval()

    base = load(options.base)
    vocabulary = base.config.vocab_size
    ids = torch.tensor([[i * vocabulary // 7 for i in range(7)]])
    if options.probe:
        ids = load_file(options.probe[0])["ids"]
    with torch.no_grad():
        bare = base(ids).logits
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model = PeftModel.from_pretrained(base, options.adapter).eval()
    # PEFT says in warnings which tensors of a file it found no place for, and which it missed.
    faults = [str(w.message) for w in said if "missing" in str(w.message) or "unexpected" in str(w.message).lower()]
    config = model.peft_config["default"]
    print(f"rank {config.r}, alpha {config.lora_alpha}, targets {sorted(config.target_modules)}, "
          f"whole {config.modules_to_save}, base {config.base_model_name_or_path}")
    with torch.no_grad():
        logits = model(ids).logits
    print(f"logits: std {logits.std():.5f}, the adapter moves them by up to {(logits - bare).abs().max():.5f}")
    if not logits.isfinite().all():
        faults.append("logits are not finite")
    if torch.equal(logits, bare):
        faults.append("the adapter does nothing")

    def compare(name, theirs):
        gap = ((theirs - logits).abs() / logits.abs().clamp(min=1.0)).max().item()
        print(f"{name}: largest difference {gap:.2e} (allowed {options.tolerance:.0e})")
        if not gap <= options.tolerance:
            faults.append(f"{name}: logits differ")

    if options.probe:
        compare("probe", load_file(options.probe[1])["logits"].float())
    if options.merged:
        with torch.no_grad():
            compare("merged", load(options.merged)(ids).logits)
    for fault in faults:
        print(fault)
    print("FAILED" if faults else "ok")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
