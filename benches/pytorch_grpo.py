"""Rollouts with latent steps and whole updates of Dropout-GRPO, as benches/pytorch.py times them.

One batch and one KV cache for all rollouts, in sampling and in the loss pass. A group's prompt is computed once and its
cache repeated wherever no mask covers it, with the gradient flowing back through the repetition. The loss pass feeds the
latents back step by step (each needs the one before), then reads the end marker and the answer in one segment; logits are
taken only where an answer token is predicted.
"""

from pytorch_work import ANSWER, LATENTS, PROMPT, Place, autocast, build, random_ids, torch_dtype

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
        for block in getattr(net.base_model, "h", ()):
            block.attn.resid_dropout, block.mlp.dropout = Mask(), Mask()
            self.sites += [block.attn.resid_dropout, block.mlp.dropout]
        for block in getattr(net.base_model, "layers", ()):
            # Llama and its kin have no dropout there: the mask stands behind the last product.
            attention, mlp = Mask(), Mask()
            block.self_attn.o_proj = torch.nn.Sequential(block.self_attn.o_proj, attention)
            block.mlp.down_proj = torch.nn.Sequential(block.mlp.down_proj, mlp)
            self.sites += [attention, mlp]
        self.width = net.config.hidden_size

    def draw(self, rows, dtype):
        """New masks, not yet in force."""
        import torch
        shape = (len(self.sites), rows, 1, self.width)
        self.masks = (torch.rand(shape, device=Place.torch_device()) >= P).to(dtype) / (1 - P)

    def on(self):
        for site, mask in zip(self.sites, self.masks):
            site.mask = mask

    def off(self):
        for site in self.sites:
            site.mask = None


class Sampler:
    """A model and prompts; what a group of rollouts of each prompt goes through. Call it under the caller's gradient mode.
    """

    def __init__(self, net, prompts, held=None, share=True, share_thoughts=False):
        import torch
        self.net, self.body, self.head = net, net.base_model, net.get_output_embeddings()
        self.prompts, self.group, self.rows = prompts, Place.rollouts, len(prompts) * Place.rollouts
        self.held, self.share, self.share_thoughts = held, share, share_thoughts
        self.end = torch.zeros(self.rows, 1, dtype=torch.int64, device=prompts.device)

    def think(self):
        """Prompts and latent steps; returns the cache."""
        from transformers import DynamicCache
        cache = DynamicCache(config=self.net.config)
        ids = self.prompts if self.share else self.prompts.repeat_interleave(self.group, 0)
        z = self.body(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state[:, -1:]
        if self.share and not self.share_thoughts:
            cache.batch_repeat_interleave(self.group)
            z = z.repeat_interleave(self.group, 0)
        if self.held:
            self.held.on()
        for _ in range(LATENTS):
            z = self.body(inputs_embeds=z, past_key_values=cache, use_cache=True).last_hidden_state
        if self.held:
            self.held.off()
        if self.share_thoughts:
            cache.batch_repeat_interleave(self.group)
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
    prompt = random_ids(net.config.vocab_size, 1, PROMPT)
    sampler = Sampler(net, prompt, held, share=shared or masked, share_thoughts=shared)

    def run():
        with torch.inference_mode():
            if held:
                held.draw(sampler.rows, torch_dtype(dtype))
            return sampler.sample()

    return run, {"shape": f"K {sampler.group}, prompt {PROMPT}, {LATENTS} latents, {ANSWER} tokens",
                 "tokens": sampler.rows * ANSWER}


def rollout_shared(warm, model, dtype):
    return rollout(warm, model, dtype, shared=True)


def rollout_masked(warm, model, dtype):
    return rollout(warm, model, dtype, masked=True)


def grpo_step(_warm, model, dtype, dropout=False):
    """The function returns the largest |log-probability at the update - at the rollout|, a tensor."""
    import torch
    net = build(model, torch.float32, dropout=P if dropout else 0.0).train()
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-5, weight_decay=0.01, fused=True)
    held = None if dropout else Held(net)
    vocabulary = net.config.vocab_size
    prompts = random_ids(vocabulary, Place.prompts, PROMPT)
    # Framework dropout covers the prompt: a group cannot share it.
    sampler = Sampler(net, prompts, held, share=not dropout)

    def step():
        if held:
            held.draw(sampler.rows, torch.float32)
        with torch.no_grad(), autocast(dtype):
            tokens, old = sampler.sample()
        rewards = (tokens[:, 0].float() / vocabulary).view(-1, sampler.group)
        advantages = (rewards - rewards.mean(1, keepdim=True)).view(-1, 1)
        # A context of its own: autocast may remember weights that it rounded without a gradient.
        with autocast(dtype):
            logp = sampler.score(tokens)
            ratio = (logp - old).exp()
            surrogate = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
            loss = -surrogate.sum() / sampler.rows
        gap = (logp.detach() - old).abs().max()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return gap

    return step, {"shape": f"{len(prompts)} x K {sampler.group}, prompt {PROMPT}, {LATENTS} latents, {ANSWER} tokens",
                  "tokens": sampler.rows * ANSWER}


def grpo_step_dropout(warm, model, dtype):
    return grpo_step(warm, model, dtype, dropout=True)
