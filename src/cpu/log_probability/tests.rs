use super::*;

#[test]
fn backward_reads_the_logits_that_forward_kept() {
    let (rows, width, vocabulary) = (3, 4, 5);
    let number = |at: usize| (at as f64 * 0.37).sin();
    let (h, w): (Vec<f64>, Vec<f64>) =
        ((0..rows * width).map(number).collect(), (7..7 + vocabulary * width).map(number).collect());
    let all = Operands { h: &h, w: &w, width, targets: &[1, 4, 0], inverse_temperature: 1.0 };
    let mut results = vec![vec![0.0; rows]; 4];
    let mut logits = vec![0.0; rows * vocabulary];
    let [log_probability, maximum, log_sum, entropy] = results.get_disjoint_mut([0, 1, 2, 3]).unwrap();
    let out = Results { log_probability, maximum, log_sum, entropy };
    forward(all, out, Kept { logits: &mut logits });
    let upstream = Upstream {
        d_log_probability: &[1.0, -0.5, 2.0],
        d_entropy: None,
        maximum: &results[1],
        log_sum: &results[2],
        entropy: &results[3],
    };
    let gradient = |kept: Kept<f64>| {
        let mut dh = vec![0.0; rows * width];
        backward(all, upstream, &mut dh, None, kept);
        dh
    };
    let expected = gradient(Kept::none());
    assert_eq!(gradient(Kept { logits: &mut logits }), expected);
    // Twice: they are still there. Without them it reads what else stands there.
    assert_eq!(gradient(Kept { logits: &mut logits }), expected);
    logits.fill(0.0);
    assert_ne!(gradient(Kept { logits: &mut logits }), expected);
}

#[test]
fn minus_infinity_is_probability_zero_and_nan_stays_nan() {
    let mut logits = vec![f64::NEG_INFINITY; 2 * CHUNK + 3];
    logits[CHUNK + 5] = 1.0;
    logits[2 * CHUNK + 1] = 1.0;
    let running = Running::of::<true>(&logits, 1.0);
    assert_eq!((running.maximum, running.sum), (1.0, 2.0));
    assert!((running.entropy() - 2.0_f64.ln()).abs() < 1e-15);
    for at in [0, CHUNK + 5, 2 * CHUNK + 2] {
        let mut broken = logits.clone();
        broken[at] = f64::NAN;
        assert!(Running::of::<false>(&broken, 1.0).sum.is_nan(), "{at}");
    }
    assert!(Running::of::<false>(&[f64::NAN; 20], 1.0).sum.is_nan());
}

#[test]
fn entropy_does_not_change_the_sum() {
    let logits: Vec<f32> = (0..1777).map(|i| ((i * 7919) % 1009) as f32 * 0.01).collect();
    let (with, without) = (Running::of::<true>(&logits, 0.7), Running::of::<false>(&logits, 0.7));
    assert_eq!(with.maximum.to_bits(), without.maximum.to_bits());
    assert_eq!(with.sum.to_bits(), without.sum.to_bits());
}
