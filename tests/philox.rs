//! The random number layout is frozen: published known answers of the generator, vectors of the two levels, and
//! the numbers of purposes. Whoever changes one of these breaks every stored seed.

use latch::base::rng::{Purpose, StreamKey, philox4x32};

#[test]
fn known_answers_of_random123() {
    // Random123 (Salmon et al. 2011), kat_vectors, philox4x32 with 10 rounds.
    let cases = [
        ([0; 2], [0; 4], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
        ([u32::MAX; 2], [u32::MAX; 4], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
        (
            [0xa409_3822, 0x299f_31d0],
            [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
        ),
    ];
    for (key, counter, expected) in cases {
        assert_eq!(philox4x32(key, counter), expected, "key {key:08x?} counter {counter:08x?}");
    }
}

/// Made by an independent program (ten lines of Python on unbounded integers), then frozen.
#[test]
fn vectors_of_the_two_levels() {
    // (seed, update, prompt, rollout, purpose), stream key, (site, step, draw, attempt), word.
    type Vector = ((u64, u32, u32, u32, Purpose), [u32; 2], (u32, u32, u32, u32), u32);
    const MAX: u32 = u32::MAX;
    let vectors: [Vector; 5] = [
        ((0, 0, 0, 0, Purpose::Mask), [0x6627_e8d5, 0xe169_c58d], (0, 0, 0, 0), 0xd4ab_ea56),
        ((42, 7, 3, 1, Purpose::Mask), [0x9baf_dfdf, 0x0e1b_0f3c], (90, 0, 767, 0), 0x9db4_b41c),
        ((42, 7, 3, 1, Purpose::Gumbel), [0x3d4e_5d69, 0x3183_e19c], (0, 5, 50_259, 2), 0x9f3c_60ef),
        (
            (0x0123_4567_89ab_cdef, 123_456, 99, 7, Purpose::Token),
            [0xaf52_f90c, 0x15c1_8f52],
            (0, 310, 1, 1),
            0x85eb_a916,
        ),
        (
            (u64::MAX, MAX, MAX, MAX, Purpose::Probe),
            [0x13e8_4b3f, 0xa9a7_09e6],
            (MAX, MAX, MAX, MAX),
            0xca74_e884,
        ),
    ];
    for ((seed, update, prompt, rollout, purpose), key, (site, step, draw, attempt), word) in vectors {
        let stream = StreamKey::new(seed, update, prompt, rollout, purpose);
        assert_eq!(stream.0, key, "stream of seed {seed} {purpose:?}");
        assert_eq!(stream.word(site, step, draw, attempt), word, "draw {draw} of seed {seed} {purpose:?}");
        let block = stream.block(site, step, draw / 4, attempt);
        assert_eq!(block[draw as usize % 4], word);
    }
}

#[test]
fn purposes_keep_their_numbers() {
    let purposes = [
        Purpose::Mask,
        Purpose::Gumbel,
        Purpose::Token,
        Purpose::DataOrder,
        Purpose::Init,
        Purpose::Eval,
        Purpose::Problem,
        Purpose::LatentNoise,
        Purpose::Probe,
    ];
    for (number, purpose) in purposes.into_iter().enumerate() {
        assert_eq!(purpose as usize, number, "{purpose:?}");
        // The number is the last counter word of the first level.
        let words = philox4x32([5, 0], [1, 2, 3, number as u32]);
        assert_eq!(StreamKey::new(5, 1, 2, 3, purpose).0, [words[0], words[1]]);
    }
}

#[test]
fn uniforms_stay_inside_and_integers_below() {
    let mut draws = StreamKey::new(1, 0, 0, 0, Purpose::Eval).draws(2, 3);
    let mut counts = [0_u32; 7];
    for _ in 0..7000 {
        let uniform = draws.uniform();
        assert!(uniform > 0.0 && uniform < 1.0);
        counts[draws.below(7)] += 1;
    }
    // 1000 expected each, sigma 29.
    assert!(counts.iter().all(|&count| (850..1150).contains(&count)), "{counts:?}");
}
