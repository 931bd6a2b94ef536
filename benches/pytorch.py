#!/usr/bin/env python3
"""The PyTorch side of latch's benchmarks: the same work, written the way a good PyTorch user would write it.

    python benches/pytorch.py --list
    python benches/pytorch.py --only gemm,train_step/small --repeat 20 --threads 2
    python benches/pytorch.py --serve

Prints one JSON line per benchmark: name, shape, dtype, threads, cpu, median_ms, min_ms, n, and gflops, gbps, tokens_per_s or
mib where they mean something (rates are taken from the fastest run). bf16 lines say whether the CPU has instructions for
it ("bf16": "hardware" or "emulated").

On a GPU (--device cuda) the same work under the dtypes f32 (TF32 products allowed), bf16 and bf16a, the last two being one
thing here: a model in bf16 where nothing is trained, bf16 autocast over f32 weights where something is. Work is timed between
two waits for the device.

--serve reads one request per line on standard input, {"name": "train_step/small/f32", "iterations": 3}, and answers one
line, {"name": ..., "threads": ..., "times_ms": [...]}, so that another program can alternate its runs with ours. Models
stay warm between requests; the first request for a name also does the warm-up. Other requests: {"name": "info"} for
versions, {"name": "forget"} to drop all models, "threads": N, "rollouts": K (of a group) and "prompts": N (of an update) in
any request. A failure answers {"name", "error"}.

What is measured:
  gemm/MxKxN        x[M,K] @ w[N,K]^T into a buffer that exists already (as a linear layer, without the allocation)
  train_step/...    forward, backward and fused AdamW on 4 x 64 tokens; f32, or bf16 autocast over f32 weights
  prefill/...       one row of 256 tokens through the model with a fresh KV cache, logits of the last position only
  decode/...        batch 1, greedy, 32 tokens after a prompt of 64 that is already in the KV cache
  rollout/...       8 rollouts of one prompt: 64 tokens, 6 latent steps, an end marker, 32 sampled tokens with their
                    log-probabilities; batched, KV cache, prompt and latents computed 8 times
  rollout_shared/.. the same with prompt and latents, which do not differ, computed once and their cache repeated
  rollout_masked/.. the same with a dropout mask (p = 0.1) of each rollout's own, held over its latent steps; the prompt
                    computed once and its cache repeated
  grpo_step/...     a whole update: 2 prompts x 8 such masked rollouts, rewards, the loss pass under the same masks with the
                    gradient through the latents, fused AdamW
  grpo_step_dropout/.. an update with the framework's dropout of 0.1, as model.train() has it: everywhere, new at each call
  rss/...           peak resident memory of a process that does three such steps (mib; import_mib = before the model)
  gap/...           largest |log-probability at the update - at the rollout| (nats) before the weights move
  peak/...          on a GPU: peak memory of the device's tensors in three such steps (mib)
  triad/...         a = b + 2 c over three arrays of that size: what the memory gives at this moment

Fair to PyTorch: waiting OpenMP threads sleep, the allocator keeps its memory and asks for huge pages (the process
restarts itself once to set this), attention is torch's fused one, no hooks, gradients off where not needed. An update runs
all its rollouts as one batch with a KV cache, in sampling and in the loss pass; it computes each prompt once for its group
where masks allow that, reads the whole answer in one segment in the loss pass, and takes logits only where an answer token
is predicted (pytorch_grpo.py). Weights are random; nothing is downloaded. Left out: torch.compile, CUDA graphs, quantisation.
"""

import argparse
import fnmatch
import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import time

from pytorch_grpo import grpo_step, grpo_step_dropout, rollout, rollout_masked, rollout_shared
from pytorch_work import GEMMS, MODELS, MODELS_OF_A_GPU, Place, Warm, decode, gemm, prefill, train_step, triad

SETTINGS = {
    "OMP_WAIT_POLICY": "passive",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def names():
    """Every benchmark's name, WORK/SHAPE/DTYPE. Stable: other programs spell them."""
    if Place.is_gpu():
        return names_on_a_gpu()
    both = ("f32", "bf16")
    found = [f"triad/{s}/f32" for s in ("8mib", "128mib")]
    found += [f"gemm/{m}x{k}x{n}/{d}" for m, k, n in GEMMS for d in both]
    found += [f"train_step/{m}/{d}" for m in MODELS[:2] for d in both]
    found += [f"{w}/{m}/{d}" for w in ("prefill", "decode") for m in MODELS for d in both]
    found += [f"{w}/{m}/{d}" for w in ("rollout", "rollout_shared", "rollout_masked") for m in MODELS[:2] for d in both]
    found += [f"{w}/small/{d}" for w in ("grpo_step", "grpo_step_dropout") for d in both]
    found += ["gap/grpo_step/small/f32", "gap/grpo_step_dropout/small/f32"]
    found += [f"rss/train_step/{m}/{d}" for m in MODELS[:2] for d in both]
    found += [f"rss/grpo_step/small/{d}" for d in both]
    return found


def names_on_a_gpu():
    works = ("train_step", "grpo_step", "rollout_masked", "rollout_shared", "rollout", "decode", "prefill")
    dtypes = ("f32", "bf16", "bf16a")
    found = [f"{w}/{m}/{d}" for w in works for m in MODELS_OF_A_GPU for d in dtypes]
    # The framework's dropout as GPT-2 has it.
    found += [f"grpo_step_dropout/{m}/{d}" for m in ("small", "gpt2-124m", "tiny") for d in dtypes]
    found += [f"{k}/{w}/{m}/{d}" for k in ("gap", "peak") for w in ("grpo_step", "train_step")[:1 if k == "gap" else 2]
              for m in MODELS_OF_A_GPU for d in dtypes]
    return found


WORK = {f.__name__: f for f in (gemm, train_step, prefill, decode, rollout, rollout_shared, rollout_masked, grpo_step,
                                grpo_step_dropout, triad)}


# ---------------------------------------------------------------------------------------------------------------------
# Timing

class Bench:
    """Prepared benchmarks by name, so that a second request for one finds it warm."""

    def __init__(self):
        self.warm, self.ready = Warm(), {}

    def prepare(self, name):
        if name not in names():
            raise ValueError(f"unknown benchmark {name!r}; --list prints them")
        key = self.key(name)
        if key not in self.ready:
            work, shape, dtype = name.split("/")
            run, facts = WORK[work](self.warm, shape, dtype)
            start = time.perf_counter()
            run()
            Place.wait()
            if time.perf_counter() - start < 5.0:
                run()  # oneDNN and the allocator settle in the second run
                Place.wait()
            self.ready[key] = run, facts
        return self.ready[key]

    @staticmethod
    def key(name):
        return name, Place.rollouts, Place.prompts

    def times(self, name, iterations, budget=None):
        """Milliseconds of each run; with a budget in seconds it stops early, though not before three."""
        run, _ = self.prepare(name)
        taken, start = [], time.perf_counter()
        while len(taken) < iterations:
            before = time.perf_counter()
            run()
            Place.wait()
            after = time.perf_counter()
            taken.append((after - before) * 1e3)
            if budget and after - start > budget and len(taken) >= 3:
                break
        return taken

    def gap(self, name, updates):
        """The largest difference of log-probabilities in that many updates."""
        work, shape, dtype = name.removeprefix("gap/").split("/")
        run, _ = WORK[work](self.warm, shape, dtype)
        return max(float(run()) for _ in range(updates))

    def peak(self, name):
        """Most bytes of tensors on the device, in MiB, of three steps."""
        import torch
        work, shape, dtype = name.removeprefix("peak/").split("/")
        if Place.kind() != "cuda":
            raise ValueError("only a CUDA device tells its peak memory")
        self.forget()
        torch.cuda.reset_peak_memory_stats()
        run, _ = WORK[work](self.warm, shape, dtype)
        for _ in range(3):
            run()
        Place.wait()
        return torch.cuda.max_memory_allocated() / 2**20

    def forget(self, name=None):
        """Drops one prepared benchmark, or with no name everything."""
        if name is None:
            self.warm, self.ready = Warm(), {}
        else:
            self.ready.pop(self.key(name), None)
        gc.collect()
        if Place.kind() == "cuda":
            import torch
            torch.cuda.empty_cache()


def peak_mib():
    """This process's own high-water mark.

    getrusage's figure survives exec and, after a vfork, starts from the parent's, so a small child of a large process
    reports the large one. Linux keeps the per-process mark in /proc; getrusage stands in elsewhere.
    """
    try:
        with open("/proc/self/status") as status:
            return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) / 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


def measure_rss(name, threads):
    command = [sys.executable, os.path.abspath(__file__), "--rss-child", name, "--threads", str(threads)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError(f"the measured process ended with {done.returncode}")
    return json.loads(done.stdout)


def rss_child(name):
    from transformers import GPT2LMHeadModel  # noqa: F401  torch and the model's code come with it
    before = peak_mib()
    _, work, model, dtype = name.split("/")
    run, _ = WORK[work](Warm(), model, dtype)
    for _ in range(3):
        run()
    return {"mib": round(peak_mib(), 1), "import_mib": round(before, 1)}


def cpu_capability():
    """The vector instructions torch chose."""
    import torch
    return torch.backends.cpu.get_cpu_capability()


def bf16_in_hardware():
    """Without AMX or AVX-512 bf16 torch emulates; a training step was measured 28 times slower than its f32."""
    try:
        with open("/proc/cpuinfo") as info:
            flags = info.read()
    except OSError:
        return True  # unknown
    return "flags" not in flags or any(f in flags for f in ("avx512_bf16", "amx_bf16"))


def report(bench, name, repeat, budget, threads):
    line = {"name": name, "dtype": name.rsplit("/", 1)[1], "threads": threads, "cpu": cpu_capability()}
    if line["dtype"] == "bf16" and not Place.is_gpu():
        line["bf16"] = "hardware" if bf16_in_hardware() else "emulated"
    if name.startswith("rss/"):
        return {**line, **measure_rss(name, threads)}
    if name.startswith("gap/"):
        return {**line, "gap": bench.gap(name, 3)}
    if name.startswith("peak/"):
        return {**line, "mib": bench.peak(name)}
    taken = bench.times(name, repeat, budget)
    facts, best = bench.prepare(name)[1], min(taken)
    line |= {"shape": facts["shape"], "median_ms": round(statistics.median(taken), 4), "min_ms": round(best, 4),
             "n": len(taken)}
    if "flops" in facts:
        line["gflops"] = round(facts["flops"] / best / 1e6, 1)
    if "bytes" in facts:
        line["gbps"] = round(facts["bytes"] / best / 1e6, 2)
    if "tokens" in facts:
        line["tokens_per_s"] = round(facts["tokens"] / best * 1e3, 1)
    return line


def serve(threads):
    import torch
    import transformers
    bench = Bench()
    for text in sys.stdin:
        if not text.strip():
            continue
        name = None
        try:
            request = json.loads(text)
            name, iterations = request["name"], int(request.get("iterations", 1))
            used = int(request.get("threads", threads))
            torch.set_num_threads(used)
            Place.rollouts = int(request.get("rollouts", Place.rollouts))
            Place.prompts = int(request.get("prompts", Place.prompts))
            answer = {"name": name, "threads": used}
            if name == "info":
                answer |= {"torch": torch.__version__, "transformers": transformers.__version__, "cpu": cpu_capability(),
                           "bf16": "hardware" if bf16_in_hardware() else "emulated", "names": names()}
                if Place.kind() == "cuda":
                    answer["gpu"] = torch.cuda.get_device_name()
            elif name == "forget":
                bench.forget()
            elif name in names() and name.startswith("rss/"):
                answer |= measure_rss(name, used)
            elif name in names() and name.startswith("gap/"):
                answer["gap"] = bench.gap(name, iterations)
            elif name in names() and name.startswith("peak/"):
                answer["mib"] = bench.peak(name)
            else:
                answer["times_ms"] = [round(t, 4) for t in bench.times(name, iterations)]
        except Exception as error:  # one bad request must not end the other program's run
            answer = {"name": name, "error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


def selected(only):
    """Names that equal, start with (by whole parts) or match one of the patterns."""
    if not only:
        return names()
    patterns = only.split(",")
    found = [n for n in names() if any(n == p or n.startswith(p.rstrip("/") + "/") or fnmatch.fnmatch(n, p)
                                       for p in patterns)]
    if not found:
        sys.exit(f"--only {only}: no such benchmark; --list prints them")
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    parser.add_argument("--only", help="names, leading parts of names or patterns, separated by commas")
    parser.add_argument("--repeat", type=int, default=20, help="timed runs of each (default 20)")
    parser.add_argument("--budget", type=float, default=20.0,
                        help="seconds after which a benchmark stops early, after three runs at least (default 20)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="torch threads (default all)")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:N, or sim: a GPU's names on the CPU")
    parser.add_argument("--rollouts", type=int, default=8, help="rollouts of a group (default 8)")
    parser.add_argument("--prompts", type=int, default=2, help="prompts of an update (default 2)")
    parser.add_argument("--serve", action="store_true", help="answer requests on standard input")
    parser.add_argument("--rss-child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.repeat < 1 or options.threads < 1:
        parser.error("--repeat and --threads must be at least 1")
    Place.device, Place.rollouts, Place.prompts = options.device, options.rollouts, options.prompts
    if options.list:
        print("\n".join(names()))
        return
    chosen = selected(options.only)
    if any(os.environ.get(k) != v for k, v in SETTINGS.items()) and sys.platform == "linux":
        # The allocator and OpenMP read these when a process starts.
        os.environ.update(SETTINGS)
        os.execv(sys.executable, [sys.executable, *sys.argv])
    os.environ.update(SETTINGS)
    import torch
    import transformers
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(options.threads)
    if Place.kind() == "cuda":
        torch.cuda.set_device(torch.device(Place.device).index or 0)
        torch.set_float32_matmul_precision("high")  # TF32
    if options.rss_child:
        print(json.dumps(rss_child(options.rss_child)))
    elif options.serve:
        serve(options.threads)
    else:
        bench = Bench()
        if not options.only and not Place.is_gpu() and not bf16_in_hardware():
            print("no bf16 instructions here: bf16 is left out unless --only names it", file=sys.stderr)
            chosen = [n for n in chosen if not n.endswith("/bf16")]
        for name in chosen:
            print(json.dumps(report(bench, name, options.repeat, options.budget, options.threads)), flush=True)
            bench.forget(name)


if __name__ == "__main__":
    main()
