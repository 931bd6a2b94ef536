#!/usr/bin/env python3
"""Opens a model folder with transformers and prints what it finds: does a folder that latch saved open elsewhere?

    python tools/check_hf_folder.py DIR
    python tools/check_hf_folder.py DIR --ids 1,2,3 --compare-logits logits.safetensors

With --compare-logits the file's `logits` ([T, V] or [1, T, V]) are compared with transformers' for those ids, in float32.
Exits 1 where weights are missing or unexpected, logits are not finite, or the comparison fails.
"""

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--ids", help="token ids separated by commas (default: a few spread over the vocabulary)")
    parser.add_argument("--compare-logits", type=Path, metavar="FILE", help="safetensors file with `logits`")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="allowed |a - b| / max(1, |b|) (default 1e-4)")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if not (options.folder / "config.json").is_file():
        # A name that is no folder would be taken for one on the hub.
        print(f"{options.folder}: no config.json there")
        return 1

    model, report = AutoModelForCausalLM.from_pretrained(
        options.folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True, local_files_only=True)
    model.eval()
    config = model.config
    print(f"{type(model).__name__}: {sum(p.numel() for p in model.parameters())} parameters, "
          f"{config.num_hidden_layers} layers, width {config.hidden_size}, vocabulary {config.vocab_size}, "
          f"{'tied' if config.tie_word_embeddings else 'untied'}")
    faults = [f"{kind.replace('_', ' ')}: {sorted(report[kind])}"
              for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") if report.get(kind)]

    if any((options.folder / f).is_file() for f in TOKENIZER_FILES):
        tokenizer = AutoTokenizer.from_pretrained(options.folder, local_files_only=True)
        text = "1 + 2 = 3\n"
        ids = tokenizer(text)["input_ids"]
        print(f"tokenizer: {len(tokenizer)} tokens, {text!r} -> {ids} -> {tokenizer.decode(ids)!r}")
        if len(tokenizer) > config.vocab_size:
            faults.append(f"the tokenizer has {len(tokenizer)} tokens, the model only {config.vocab_size}")
    else:
        print("tokenizer: none")

    if options.ids:
        ids = [int(x) for x in options.ids.split(",")]
    else:
        ids = [i * config.vocab_size // 7 for i in range(7)]
    if not all(0 <= i < config.vocab_size for i in ids):
        print(f"--ids: {ids} does not fit a vocabulary of {config.vocab_size}")
        return 1
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0]
    print(f"logits for {ids}: mean {logits.mean():.5f}, std {logits.std():.5f}, "
          f"min {logits.min():.5f}, max {logits.max():.5f}, argmax {logits.argmax(-1).tolist()}")
    if not logits.isfinite().all():
        faults.append("logits are not finite")

    if options.compare_logits:
        theirs = load_file(options.compare_logits)["logits"].float()
        theirs = theirs[0] if theirs.dim() == 3 and theirs.shape[0] == 1 else theirs
        if theirs.shape != logits.shape:
            faults.append(f"{options.compare_logits}: logits {list(theirs.shape)}, expected {list(logits.shape)}")
        else:
            gap = ((theirs - logits).abs() / logits.abs().clamp(min=1.0)).max().item()
            print(f"largest difference: {gap:.2e} (allowed {options.tolerance:.0e})")
            if not gap <= options.tolerance:
                faults.append("logits differ")
    for fault in faults:
        print(fault)
    print("FAILED" if faults else "ok")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
