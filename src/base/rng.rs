//! Randomness is data: every draw is a pure function of where it is used.
//!
//! Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) in two levels:
//!
//! ```text
//! stream key = first two words of Philox(key = 64-bit seed, counter = (update, prompt, rollout, purpose))
//! draw i     = Philox(key = stream key, counter = (site, step or position, i / 4, attempt))[i % 4]
//! ```
//!
//! There is no generator state anywhere, so any rollout can be replayed alone or in any batch.
//! The layout is frozen; `tests/philox.rs` holds its vectors and the published known answers.

const MULTIPLIER: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// One block of Philox4x32-10: four words from a 64-bit key and a 128-bit counter.
#[inline(always)]
pub fn philox4x32(key: [u32; 2], counter: [u32; 4]) -> [u32; 4] {
    let ([mut k0, mut k1], [mut c0, mut c1, mut c2, mut c3]) = (key, counter);
    for _ in 0..ROUNDS {
        let p0 = u64::from(MULTIPLIER[0]) * u64::from(c0);
        let p1 = u64::from(MULTIPLIER[1]) * u64::from(c2);
        (c0, c1, c2, c3) = ((p1 >> 32) as u32 ^ c1 ^ k0, p1 as u32, (p0 >> 32) as u32 ^ c3 ^ k1, p0 as u32);
        k0 = k0.wrapping_add(WEYL[0]);
        k1 = k1.wrapping_add(WEYL[1]);
    }
    [c0, c1, c2, c3]
}

/// What a stream of random numbers is for. The numbers are part of the frozen layout: add, never renumber.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Purpose {
    /// Dropout bitmaps.
    Mask = 0,
    /// Gumbel noise of soft latents.
    Gumbel = 1,
    /// Choice of a sampled token.
    Token = 2,
    /// Order of training data.
    DataOrder = 3,
    /// Initial weights.
    Init = 4,
    /// Anything drawn during evaluation.
    Eval = 5,
    /// Generated problems.
    Problem = 6,
    /// Gaussian noise on latents.
    LatentNoise = 7,
    /// Which entries a check or an audit looks at.
    Probe = 8,
}

/// Key of one stream: made from the seed and the coordinates of a rollout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StreamKey(pub [u32; 2]);

impl StreamKey {
    /// The stream of `(update, prompt, rollout)` for one purpose under a 64-bit seed.
    pub fn new(seed: u64, update: u32, prompt: u32, rollout: u32, purpose: Purpose) -> Self {
        let words = philox4x32([seed as u32, (seed >> 32) as u32], [update, prompt, rollout, purpose as u32]);
        StreamKey([words[0], words[1]])
    }

    /// The four words of block `block` at `(site, step)`; draw `i` is word `i % 4` of block `i / 4`.
    /// `step` is a recurrence step or a position; `attempt` counts refills of one prompt in one update.
    #[inline(always)]
    pub fn block(self, site: u32, step: u32, block: u32, attempt: u32) -> [u32; 4] {
        philox4x32(self.0, [site, step, block, attempt])
    }

    /// Draw `i` at `(site, step)`.
    #[inline(always)]
    pub fn word(self, site: u32, step: u32, i: u32, attempt: u32) -> u32 {
        self.block(site, step, i / 4, attempt)[(i % 4) as usize]
    }

    /// A view of the stream at `(site, step)` that hands out draws 0, 1, 2, ... in order.
    pub fn draws(self, site: u32, step: u32) -> Draws {
        Draws { key: self, site, step, next: 0 }
    }
}

/// Successive draws of one stream at one site and step. A cursor, not a generator: its state is the index of
/// the next draw, so the same coordinates always give the same numbers.
#[derive(Clone, Debug)]
pub struct Draws {
    key: StreamKey,
    site: u32,
    step: u32,
    next: u32,
}

impl Draws {
    /// The next 32-bit word.
    pub fn word(&mut self) -> u32 {
        let word = self.key.word(self.site, self.step, self.next, 0);
        self.next += 1;
        word
    }

    /// Uniform in (0, 1): `(word + 1/2) / 2^32`.
    pub fn uniform(&mut self) -> f64 {
        (f64::from(self.word()) + 0.5) / 4_294_967_296.0
    }

    /// Uniform integer in `0..bound` (multiply-shift; bias below `bound / 2^32`). `bound` must not be 0.
    pub fn below(&mut self, bound: usize) -> usize {
        ((u64::from(self.word()) * bound as u64) >> 32) as usize
    }

    /// Standard normal by Box and Muller (one of the pair; two words per call).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * self.uniform().ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_words_in_order() {
        let key = StreamKey::new(7, 1, 2, 3, Purpose::Mask);
        let mut draws = key.draws(9, 4);
        for i in 0..9 {
            assert_eq!(draws.word(), key.word(9, 4, i, 0));
        }
    }
}
