"""Rollouts with latent steps and whole updates of Dropout-GRPO, as benches/pytorch.py times them.

One batch and one KV cache for all rollouts, in sampling and in the loss pass. A group's prompt is computed once and its
cache repeated wherever no mask covers it, with the gradient flowing back through the repetition. The loss pass feeds the
latents back step by step (each needs the one before), then reads the end marker and the answer in one segment; logits are
taken only where an answer token is predicted.
"""

from pytorch_work import build, torch_dtype

PROMPT, LATENTS, ANSWER, GROUP, PROMPTS = 64, 6, 32, 8, 2
P = 0.1


class Held:
    """Dropout that is held over many calls: one mask a row at the outputs of attention and MLP of every layer."""

    def __init__(self, net):
        import torch

        class Mask(torch.nn.Module):
            mask = None

            def forward(self, x):
                return x if self.mask is None else x * self.mask

        self.sites, self.masks = [], []
        for block in net.base_model.h:
            block.attn.resid_dropout, block.mlp.dropout = Mask(), Mask()
            self.sites += [block.attn.resid_dropout, block.mlp.dropout]
        self.width = net.config.n_embd

    def draw(self, rows, dtype):
        """New masks, not yet in force."""
        import torch
        shape = (len(self.sites), rows, 1, self.width)
        self.masks = (torch.rand(shape) >= P).to(dtype) / (1 - P)

    def on(self):
        for site, mask in zip(self.sites, self.masks):
            site.mask = mask

    def off(self):
        for site in self.sites:
            site.mask = None


class Sampler:
    """A model and prompts; what `group` rollouts of each prompt go through. Call it under the caller's gradient mode."""

    def __init__(self, net, prompts, held=None, share=True, share_thoughts=False):
        import torch
        self.net, self.body, self.head = net, net.base_model, net.get_output_embeddings()
        self.prompts, self.rows = prompts, len(prompts) * GROUP
        self.held, self.share, self.share_thoughts = held, share, share_thoughts
        self.end = torch.zeros(self.rows, 1, dtype=torch.int64)

    def think(self):
        """Prompts and latent steps; returns the cache."""
        from transformers import DynamicCache
        cache = DynamicCache(config=self.net.config)
        ids = self.prompts if self.share else self.prompts.repeat_interleave(GROUP, 0)
        z = self.body(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state[:, -1:]
        if self.share and not self.share_thoughts:
            cache.batch_repeat_interleave(GROUP)
            z = z.repeat_interleave(GROUP, 0)
        if self.held:
            self.held.on()
        for _ in range(LATENTS):
            z = self.body(inputs_embeds=z, past_key_values=cache, use_cache=True).last_hidden_state
        if self.held:
            self.held.off()
        if self.share_thoughts:
            cache.batch_repeat_interleave(GROUP)
        return cache

    def sample(self):
        """Tokens [rows, ANSWER] and their log-probabilities."""
        import torch
        cache, token, tokens, scores = self.think(), self.end, [], []
        for _ in range(ANSWER):
            h = self.body(input_ids=token, past_key_values=cache, use_cache=True).last_hidden_state
            logp = torch.log_softmax(self.head(h[:, -1]).float(), dim=-1)
            token = torch.multinomial(logp.exp(), 1)
            tokens.append(token)
            scores.append(logp.gather(-1, token))
        return torch.cat(tokens, 1), torch.cat(scores, 1)

    def score(self, tokens):
        """Log-probabilities of given tokens, the answer read in one segment."""
        import torch
        cache = self.think()
        ids = torch.cat([self.end, tokens[:, :-1]], 1)
        h = self.body(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state
        logp = torch.log_softmax(self.head(h).float(), dim=-1)
        return logp.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def rollout(warm, model, dtype, shared=False, masked=False):
    import torch
    # Held masks replace modules of the model: it is not the one that others share.
    net = build(model, torch_dtype(dtype)).eval().requires_grad_(False) if masked else warm.get(model, dtype)
    held = Held(net) if masked else None
    prompt = torch.randint(0, net.config.vocab_size, (1, PROMPT))
    sampler = Sampler(net, prompt, held, share=shared or masked, share_thoughts=shared)

    def run():
        with torch.inference_mode():
            if held:
                held.draw(GROUP, torch_dtype(dtype))
            return sampler.sample()

    return run, {"shape": f"K {GROUP}, prompt {PROMPT}, {LATENTS} latents, {ANSWER} tokens", "tokens": GROUP * ANSWER}


def rollout_shared(warm, model, dtype):
    return rollout(warm, model, dtype, shared=True)


def rollout_masked(warm, model, dtype):
    return rollout(warm, model, dtype, masked=True)


def grpo_step(_warm, model, dtype, dropout=False):
    """The function returns the largest |log-probability at the update - at the rollout|."""
    import torch
    net = build(model, torch.float32, dropout=P if dropout else 0.0).train()
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-5, weight_decay=0.01, fused=True)
    held = None if dropout else Held(net)
    vocabulary = net.config.vocab_size
    prompts = torch.randint(0, vocabulary, (PROMPTS, PROMPT))
    # Framework dropout covers the prompt: a group cannot share it.
    sampler = Sampler(net, prompts, held, share=not dropout)

    def step():
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bf16"):
            if held:
                held.draw(sampler.rows, torch.float32)
            with torch.no_grad():
                tokens, old = sampler.sample()
            rewards = (tokens[:, 0].float() / vocabulary).view(PROMPTS, GROUP)
            advantages = (rewards - rewards.mean(1, keepdim=True)).view(-1, 1)
            logp = sampler.score(tokens)
            ratio = (logp - old).exp()
            surrogate = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
            loss = -surrogate.sum() / (PROMPTS * GROUP)
        gap = (logp.detach() - old).abs().max().item()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return gap

    return step, {"shape": f"{PROMPTS} x K {GROUP}, prompt {PROMPT}, {LATENTS} latents, {ANSWER} tokens",
                  "tokens": PROMPTS * GROUP * ANSWER}


def grpo_step_dropout(warm, model, dtype):
    return grpo_step(warm, model, dtype, dropout=True)
