//! The kernels against the CPU in f64: every noise, proxy and score at ragged vocabularies and supports; bits of rows.

use super::super::gpu::{compare, devices, orders};
use super::*;
use latch::ops::sampler::FAULTY;

impl Problem {
    /// Actions against f64, proxies against the CPU in f32, which decides alike from like weights.
    fn check_actions(&self, settings: &Settings) {
        let rows = 0..self.rows();
        let exact = self.act_exactly(settings);
        let single = self.act(&Device::cpu(), Dtype::F32, rows.clone(), settings);
        assert_eq!(exact.proxies, single.proxies, "{settings:?}: choose other logits");
        for device in devices() {
            let what = |part: &str| {
                format!(
                    "{part} of {settings:?}, {} of {} ids, {}",
                    self.capacity,
                    self.vocabulary,
                    device.name()
                )
            };
            let found = self.act(&device, Dtype::F32, rows.clone(), settings);
            let terms = self.capacity;
            compare(&what("g"), Dtype::F32, terms, &found.perturbed, &exact.perturbed);
            compare(&what("y"), Dtype::F32, terms, &found.soft, &exact.soft);
            compare(&what("weights"), Dtype::F32, terms, &found.weights, &exact.weights);
            compare(&what("entropy"), Dtype::F32, terms, &found.entropies, &exact.entropies);
            assert_eq!(found.proxies, exact.proxies, "{}", what("proxies"));
        }
    }

    fn check_scores(&self, inverse_temperature: f64, stored: &Actions) {
        let rows = 0..self.rows();
        let dy: Vec<f64> = rows.clone().map(|row| 1.25 - 0.5 * row as f64).collect();
        for kind in scores() {
            let run = |device: &Device, dtype| {
                self.try_score(device, dtype, rows.clone(), inverse_temperature, stored, &kind, &dy).unwrap()
            };
            let exact = run(&Device::cpu(), Dtype::F64);
            for device in devices() {
                let what = |part: &str| {
                    format!(
                        "{part} of {kind:?}, {} of {} ids, {}",
                        self.capacity,
                        self.vocabulary,
                        device.name()
                    )
                };
                let found = run(&device, Dtype::F32);
                let terms =
                    if kind == (Score::SoftCe { full: true }) { self.vocabulary } else { self.capacity };
                compare(&what("score"), Dtype::F32, terms, &found[0], &exact[0]);
                compare(&what("gradient"), Dtype::F32, terms, &found[1], &exact[1]);
            }
        }
    }
}

/// Supports of one id, of a few, of all that is room for.
fn shapes() -> Vec<Problem> {
    let of = |rows, vocabulary: usize, capacity: usize| {
        let name = format!("soft action kernels {vocabulary} {capacity}");
        // Kept ids are spread over the vocabulary: every (vocabulary / capacity)-th, from the row's number on.
        let stride = (vocabulary / capacity).max(1);
        Problem::new(&name, rows, vocabulary, capacity, |row, id| {
            let counts = [capacity, 1, capacity.div_ceil(2)];
            id % stride == row % stride && id / stride < counts[row % 3]
        })
    };
    vec![
        of(1, 1, 1),
        of(3, 5, 5),
        of(5, 31, 4),
        of(4, 613, 30),
        of(3, 777, 777),
        of(2, 5001, 33),
        of(2, 2050, 1025),
        of(1, 50_257, 30),
    ]
}

#[test]
fn actions_agree_with_f64() {
    for problem in shapes() {
        for perturbation in perturbations() {
            for (inverse_temperature, tau, proxy, hard) in
                [(1.0, 0.5, Proxy::Argmax, false), (0.8, 1.0, Proxy::Draw, true)]
            {
                problem.check_actions(&Settings { inverse_temperature, tau, perturbation, proxy, hard });
            }
        }
    }
}

#[test]
fn scores_agree_with_f64() {
    for mut problem in shapes() {
        // Where a is far below 0, f32 leaves g - a few digits, and exp(-(g - a)) of the rarest noise fewer.
        problem.logits.iter_mut().for_each(|logit| *logit *= 0.5);
        for inverse_temperature in [1.0, 0.8] {
            let acting = Settings { inverse_temperature, ..settings(GUMBEL, 0.5) };
            let stored = problem.act(&Device::cpu(), Dtype::F32, 0..problem.rows(), &acting);
            let mut moved = problem.clone();
            let count = moved.logits.len();
            for (logit, by) in moved.logits.iter_mut().zip(super::super::normals_f32("move", count)) {
                *logit += 0.1 * by;
            }
            moved.check_scores(inverse_temperature, &stored);
        }
    }
}

#[test]
fn gradients_of_weights_agree_with_f64() {
    for problem in shapes() {
        let settings = Settings { inverse_temperature: 1.1, ..settings(GUMBEL, 0.7) };
        let rows = 0..problem.rows();
        let stored = problem.act(&Device::cpu(), Dtype::F32, rows.clone(), &settings);
        let dy: Vec<f64> = (0..stored.soft.len()).map(|i| ((i * 37) % 11) as f64 / 4.0 - 1.25).collect();
        let run =
            |device: &Device, dtype| problem.pull(device, dtype, rows.clone(), &settings, &stored.soft, &dy);
        let exact = run(&Device::cpu(), Dtype::F64);
        for device in devices() {
            let found = run(&device, Dtype::F32);
            compare("soft action gradient", Dtype::F32, problem.capacity, &found, &exact);
        }
    }
}

#[test]
fn gumbel_noise_has_the_bits_of_the_cpu() {
    // With one logit everywhere a is the same number, and g differs by the noise alone.
    let problem = Problem::repeated(&[0.25; 700], 2);
    let settings = settings(GUMBEL, 1.0);
    let expected: Vec<f32> = (0..2)
        .flat_map(|row| {
            let (key, step) = stream(row);
            (0..700).map(move |id| latch::cpu::gumbel::noise(key.word(SITE, step, id, 0)))
        })
        .collect();
    for device in devices() {
        let still = Settings { perturbation: Perturbation::None, ..settings };
        let clean = problem.act(&device, Dtype::F32, 0..2, &still).perturbed[0] as f32;
        let found = problem.act(&device, Dtype::F32, 0..2, &settings).perturbed;
        for (id, (found, noise)) in found.iter().zip(&expected).enumerate() {
            assert_eq!((*found as f32).to_bits(), (clean + noise).to_bits(), "{} id {id}", device.name());
        }
    }
}

#[test]
fn a_row_depends_on_itself_alone() {
    let problem =
        Problem::new("soft action kernel rows", 41, 211, 60, |row, id| (id * 5 + row) % 211 < 1 + row % 60);
    let dy: Vec<f64> = (0..41).map(|row| 0.5 + f64::from(row) / 41.0).collect();
    for perturbation in perturbations() {
        let settings = Settings { proxy: Proxy::Draw, ..settings(perturbation, 0.5) };
        let run = |device: &Device, rows| problem.act(device, Dtype::F32, rows, &settings);
        for device in devices() {
            let whole = run(&device, 0..41);
            for row in [0, 20, 40] {
                let alone = run(&device, row..row + 1);
                assert_eq!(alone.perturbed, whole.perturbed[row * 60..(row + 1) * 60]);
                assert_eq!(alone.weights, whole.weights[row * 60..(row + 1) * 60]);
                assert_eq!(
                    (alone.proxies[0], alone.entropies[0]),
                    (whole.proxies[row], whole.entropies[row])
                );
            }
        }
        let [one, other] = orders().map(|device| run(&device, 0..41));
        assert_eq!(one, other);
    }
    let stored = problem.act(&Device::cpu(), Dtype::F32, 0..41, &settings(GUMBEL, 0.5));
    for kind in scores() {
        let run = |device: &Device, rows| {
            problem.try_score(device, Dtype::F32, rows, 1.0, &stored, &kind, &dy).unwrap()
        };
        for device in devices() {
            let whole = run(&device, 0..41);
            for row in [0, 20, 40] {
                let alone = run(&device, row..row + 1);
                assert_eq!(alone[0][0].to_bits(), whole[0][row].to_bits());
                assert_eq!(alone[1], whole[1][row * 211..(row + 1) * 211]);
            }
        }
        let [one, other] = orders().map(|device| run(&device, 0..41));
        assert_eq!(one, other);
    }
}

#[test]
fn broken_rows_become_nan() {
    let good = ragged("soft action kernel faults");
    let stored = good.act(&Device::cpu(), Dtype::F32, 0..9, &settings(GUMBEL, 0.5));
    let changes: [fn(&mut Problem); 5] = [
        |p| p.kept[5].clear(),
        |p| p.kept[5].swap(2, 3),
        |p| *p.kept[5].last_mut().unwrap() = 61,
        |p| p.logits[5 * 61 + p.kept[5][1] as usize] = f32::NAN,
        |p| p.logits[5 * 61 + p.kept[5][1] as usize] = f32::NEG_INFINITY,
    ];
    for device in devices() {
        for change in changes {
            let mut problem = good.clone();
            change(&mut problem);
            for hard in [false, true] {
                let settings = Settings { hard, proxy: Proxy::Draw, ..settings(GUMBEL, 0.5) };
                let found = problem.act(&device, Dtype::F32, 0..9, &settings);
                for row in 0..9 {
                    let at = row * 23..(row + 1) * 23;
                    for values in [&found.perturbed, &found.weights, &found.soft] {
                        assert!(values[at.clone()].iter().all(|v| v.is_nan() == (row == 5)), "row {row}");
                    }
                    assert_eq!(found.entropies[row].is_nan(), row == 5);
                    assert_eq!(found.proxies[row] == FAULTY, row == 5);
                }
            }
            for kind in scores() {
                let found =
                    problem.try_score(&device, Dtype::F32, 0..9, 1.0, &stored, &kind, &[1.0; 9]).unwrap();
                for row in 0..9 {
                    assert_eq!(found[0][row].is_nan(), row == 5, "{kind:?}");
                    assert!(found[1][row * 61..(row + 1) * 61].iter().all(|d| d.is_nan() == (row == 5)));
                }
            }
        }
        // What is not kept matters to the full vocabulary's softmax alone.
        let mut problem = good.clone();
        let other = (0..61).find(|id| !problem.kept[5].contains(id)).unwrap();
        problem.logits[5 * 61 + other as usize] = f32::NAN;
        for kind in scores() {
            let found = problem.try_score(&device, Dtype::F32, 0..9, 1.0, &stored, &kind, &[1.0; 9]).unwrap();
            assert_eq!(found[0][5].is_nan(), kind == Score::SoftCe { full: true });
        }
    }
}

#[test]
fn nothing_is_launched_for_no_rows_and_other_dtypes_are_refused() {
    let problem = ragged("soft action kernel empty");
    let settings = settings(GUMBEL, 0.5);
    for device in devices() {
        assert!(problem.act(&device, Dtype::F32, 0..0, &settings).proxies.is_empty());
        let text = problem.try_act(&device, Dtype::Bf16, 0..9, &settings).unwrap_err().to_string();
        assert!(text.contains("f32 on a GPU"), "{text}");
    }
}
