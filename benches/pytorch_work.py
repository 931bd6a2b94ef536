"""Models and the work without sampling, as benches/pytorch.py times it: matrix products, training step, prefill, decode.

Each work is a function (warm, shape, dtype) that returns (function to time, facts). Facts: shape, and per run `flops`,
`bytes` or `tokens`. Nothing is imported from torch until work is prepared.
"""

PROMPT, LATENTS, ANSWER = 64, 6, 32
BATCH, LENGTH, PREFILL = 4, 64, 256
GEMMS = [(256, 768, 3072), (1024, 1024, 1024), (768, 768, 3072), (8, 768, 3072), (1, 768, 50257)]
MODELS = ("small", "gpt2-124m", "qwen2.5-0.5b")
MODELS_OF_A_GPU = (*MODELS, "smollm2-135m", "tiny")


class Place:
    """Where everything lives, and how many rollouts there are; work takes what stands here when it is prepared."""

    # cpu, cuda or cuda:N; `sim` runs on the CPU under a GPU's names, beside latch's simulated GPU.
    device = "cpu"
    rollouts, prompts = 8, 2

    @classmethod
    def torch_device(cls):
        return "cpu" if cls.device == "sim" else cls.device

    @classmethod
    def kind(cls):
        """The type of that device, as autocast names it."""
        return cls.torch_device().split(":")[0]

    @classmethod
    def is_gpu(cls):
        return cls.device != "cpu"

    @classmethod
    def wait(cls):
        """Until a GPU has done everything that it was given."""
        if cls.kind() == "cuda":
            import torch
            torch.cuda.synchronize()


# ---------------------------------------------------------------------------------------------------------------------
# Models

def config_of(model, dropout=0.0):
    from transformers import GPT2Config, LlamaConfig, Qwen2Config
    everywhere = dict(resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout)
    if model == "small":
        return GPT2Config(vocab_size=1000, n_embd=256, n_layer=4, n_head=8, bos_token_id=0, eos_token_id=0, **everywhere)
    if model == "tiny":
        return GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2, n_positions=512, bos_token_id=0, eos_token_id=0,
                          **everywhere)
    if model == "gpt2-124m":
        return GPT2Config(**everywhere)
    if model == "smollm2-135m":
        return LlamaConfig(vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
                           num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=8192, rms_norm_eps=1e-5,
                           tie_word_embeddings=True, bos_token_id=0, eos_token_id=0,
                           rope_parameters={"rope_type": "default", "rope_theta": 100000.0})
    return Qwen2Config(vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24,
                       num_attention_heads=14, num_key_value_heads=2, max_position_embeddings=32768,
                       tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 1000000.0})


def build(model, dtype, dropout=0.0):
    import torch
    from transformers import AutoModelForCausalLM
    torch.manual_seed(0)
    with torch.device(Place.torch_device()):
        return AutoModelForCausalLM.from_config(config_of(model, dropout), dtype=dtype, attn_implementation="sdpa")


def random_ids(vocabulary, *shape):
    import torch
    return torch.randint(0, vocabulary, shape, device=Place.torch_device())


def autocast(dtype):
    """bf16 products over f32 weights, where `dtype` says so."""
    import torch
    return torch.autocast(Place.kind(), dtype=torch.bfloat16, enabled=dtype != "f32")


def matmul_parameters(model):
    """Weights that a token is multiplied with: all matrices, the tied head once, position embeddings not."""
    return sum(p.numel() for n, p in model.named_parameters() if p.dim() == 2 and "wpe" not in n)


class Warm:
    """Models for inference, shared by every benchmark that wants the same one."""

    def __init__(self):
        self.models = {}

    def get(self, model, dtype):
        if (model, dtype) not in self.models:
            self.models[model, dtype] = build(model, torch_dtype(dtype)).eval().requires_grad_(False)
        return self.models[model, dtype]


def torch_dtype(name):
    import torch
    # bf16a is latch's name for activations in bf16 too, which torch's bf16 has anyway.
    return {"f32": torch.float32, "bf16": torch.bfloat16, "bf16a": torch.bfloat16}[name]


# ---------------------------------------------------------------------------------------------------------------------
# Work

def gemm(_warm, shape, dtype):
    import torch
    m, k, n = map(int, shape.split("x"))
    x, w = torch.randn(m, k).to(torch_dtype(dtype)), torch.randn(n, k).to(torch_dtype(dtype))
    y = torch.empty(m, n, dtype=torch_dtype(dtype))
    rate = {"bytes": (m * k + n * k + m * n) * x.element_size()} if m < 8 else {"flops": 2 * m * k * n}
    return lambda: torch.mm(x, w.t(), out=y), {"shape": shape, **rate}


def train_step(_warm, model, dtype):
    import torch
    net = build(model, torch.float32).train()
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-5, weight_decay=0.01, fused=True)
    ids = random_ids(net.config.vocab_size, BATCH, LENGTH)

    def step():
        with autocast(dtype):
            loss = net(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    tokens = BATCH * LENGTH
    return step, {"shape": f"batch {BATCH}x{LENGTH}", "tokens": tokens, "flops": 6 * tokens * matmul_parameters(net)}


def prefill(warm, model, dtype):
    import torch
    net = warm.get(model, dtype)
    ids = random_ids(net.config.vocab_size, 1, PREFILL)

    def run():
        with torch.inference_mode():
            net(input_ids=ids, use_cache=True, logits_to_keep=1)

    return run, {"shape": f"1x{PREFILL}", "tokens": PREFILL}


def decode(warm, model, dtype):
    import torch
    from transformers import DynamicCache
    net = warm.get(model, dtype)
    prompt = random_ids(net.config.vocab_size, 1, PROMPT)
    cache = DynamicCache(config=net.config)
    with torch.inference_mode():
        first = net(input_ids=prompt, past_key_values=cache, logits_to_keep=1).logits[:, -1].argmax(-1, keepdim=True)

    def run():
        token = first
        with torch.inference_mode():
            appended = cache.get_seq_length() - PROMPT
            if appended:
                cache.crop(-appended)
            for _ in range(ANSWER):
                token = net(input_ids=token, past_key_values=cache).logits[:, -1].argmax(-1, keepdim=True)

    element = torch.empty(0, dtype=torch_dtype(dtype)).element_size()
    return run, {"shape": f"prompt {PROMPT}, {ANSWER} tokens", "tokens": ANSWER,
                 "bytes": ANSWER * matmul_parameters(net) * element}


def triad(_warm, size, _dtype):
    import torch
    n = int(size.removesuffix("mib")) * 2**20 // 4
    a, b, c = torch.zeros(n), torch.ones(n), torch.ones(n)
    return lambda: torch.add(b, c, alpha=2.0, out=a), {"shape": f"3 x {size}", "bytes": 3 * 4 * n}
