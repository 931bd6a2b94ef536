#!/usr/bin/env python3
"""Golden numbers of CODI's loss: writes tests/golden/codi/{gpt2,llama}.

Independent of latch: Hugging Face models in float64 with autograd, the formulas of arXiv 2502.21074 as the release
computes them (zhenyi4/codi src/model.py: hidden_states with their last entry after the final norm, nn.SmoothL1Loss,
Tensor.std over batch and width, means over layers, all latents through the projector). Lessons run one by one without
padding and without a cache; every pass begins at the question.

A folder holds the model and its projector as files that latch loads, lessons.json, and out.safetensors: the three
terms, the distance and deviation of each state, `grad/PARAMETER` of the weighed sum.
Needs torch and transformers (tools/requirements-golden.txt). Run: python3 tools/codi_golden.py
"""

import json
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from golden import F64, GOLDEN, exact
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

THOUGHTS = 3
SPECS = {
    "gpt2": (
        GPT2Config(vocab_size=31, n_positions=32, n_embd=12, n_layer=2, n_head=3, bos_token_id=30, eos_token_id=30,
                   resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0),
        10, (1.0, 1.0, 1.0)),
    "llama": (
        LlamaConfig(vocab_size=31, hidden_size=16, intermediate_size=20, num_attention_heads=4, num_key_value_heads=2,
                    num_hidden_layers=3, max_position_embeddings=32, rms_norm_eps=1e-5, tie_word_embeddings=True,
                    bos_token_id=1, eos_token_id=2),
        9, (1.0, 20.0, 1.0)),
}


def random_weights(module, generator):
    """Weights at which every part matters, numbers that f32 holds."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            scale = 0.4 if parameter.dim() > 1 else 0.15
            mean = 1.0 if parameter.dim() == 1 and name.endswith("weight") else 0.0
            parameter.copy_((mean + scale * torch.randn(parameter.shape, generator=generator)).float())


def projector(width, hidden):
    prj = nn.Sequential(nn.Dropout(0.0), nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width))
    prj.add_module("ln", nn.LayerNorm(width))
    return prj


def lessons(vocabulary, generator):
    draw = lambda count: torch.randint(0, vocabulary, (count,), generator=generator).tolist()
    out = []
    for question, steps, answer in [(4, 5, 3), (6, 0, 2), (2, 7, 4), (3, 3, 3)]:
        out.append({"question": draw(question), "start": draw(1), "end": draw(1), "steps": draw(steps),
                    "answer": draw(answer), "tap": 1})
    return out


def hidden_states(model, embeddings):
    """All states of one row, the last after the final norm, and its logits."""
    out = model(inputs_embeds=embeddings[None], output_hidden_states=True, use_cache=False)
    return [state[0] for state in out.hidden_states], out.logits[0]


def run(model, prj, batch, weights):
    embed = model.get_input_embeddings()
    tokens = lambda ids: embed(torch.tensor(ids, dtype=torch.long))
    student_terms, teacher_terms, student_states, teacher_states = [], [], [], []
    for lesson in batch:
        # Student: question, start, thoughts one after the other, end, answer.
        sequence = tokens(lesson["question"] + lesson["start"])
        for _ in range(THOUGHTS):
            states, _ = hidden_states(model, sequence)
            sequence = torch.cat([sequence, prj(states[-1][-1:])])
        first = len(sequence)
        sequence = torch.cat([sequence, tokens(lesson["end"] + lesson["answer"])])
        states, logits = hidden_states(model, sequence)
        at = torch.arange(first, first + len(lesson["answer"]))
        student_terms.append(nn.functional.cross_entropy(logits[at], torch.tensor(lesson["answer"]), reduction="none"))
        student_states.append([state[first + lesson["tap"]] for state in states])
        # Teacher: question, steps, answer.
        spoken = lesson["steps"] + lesson["answer"]
        states, logits = hidden_states(model, tokens(lesson["question"] + spoken))
        at = torch.arange(len(spoken)) + len(lesson["question"]) - 1
        teacher_terms.append(nn.functional.cross_entropy(logits[at], torch.tensor(spoken), reduction="none"))
        before = len(lesson["question"]) + len(lesson["steps"]) - 1
        teacher_states.append([state[before + lesson["tap"]] for state in states])
    distances, deviations = [], []
    for layer in range(len(student_states[0])):
        x = torch.stack([states[layer] for states in student_states])
        t = torch.stack([states[layer] for states in teacher_states]).detach()
        deviations.append(t.std())
        distances.append(nn.SmoothL1Loss()(x, t) / t.std())
    terms = [torch.cat(student_terms).mean(), torch.stack(distances).mean(), torch.cat(teacher_terms).mean()]
    loss = sum(weight * term for weight, term in zip(weights, terms))
    return loss, torch.stack(terms), torch.stack(distances), torch.stack(deviations)


def main():
    torch.manual_seed(0)
    for name, (config, hidden, weights) in SPECS.items():
        folder = GOLDEN / "codi" / name
        folder.mkdir(parents=True, exist_ok=True)
        generator = torch.Generator().manual_seed(len(name))
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        prj = projector(model.config.hidden_size, hidden)
        random_weights(model, generator)
        random_weights(prj, generator)
        model.save_pretrained(folder)
        save_file({f"prj.{key}": value.contiguous() for key, value in prj.state_dict().items()},
                  folder / "latent_projector.safetensors")
        (folder / "latent_projector.json").write_text(json.dumps(
            {"type": "mlp_layer_norm", "hidden": hidden, "activation": "gelu_pytorch_tanh", "layer_norm_eps": 1e-5}) + "\n")
        batch = lessons(config.vocab_size, generator)
        (folder / "lessons.json").write_text(json.dumps({"thoughts": THOUGHTS, "weights": weights, "lessons": batch}) + "\n")
        # What is stored is what is computed with.
        model, prj = model.double(), prj.double()
        if name == "llama":
            model.model.rotary_emb.float()  # `exact` puts angles in float64 in its place
        with exact(model, json.loads((folder / "config.json").read_text())):
            loss, terms, distances, deviations = run(model, prj, batch, weights)
            loss.backward()
        out = {"terms": terms, "distances": distances, "deviations": deviations}
        named = list(model.named_parameters()) + [(f"prj.{key}", value) for key, value in prj.named_parameters()]
        out.update({f"grad/{key}": value.grad for key, value in named})
        save_file({key: value.detach().to(F64).contiguous() for key, value in out.items()}, folder / "out.safetensors")
        assert load_file(folder / "out.safetensors")["terms"].isfinite().all()
        (folder / "generation_config.json").unlink(missing_ok=True)
        print(f"{folder}: terms {terms.tolist()}")


if __name__ == "__main__":
    main()
