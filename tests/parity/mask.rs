//! Bitmaps: every bit is its own documented draw, the law is Bernoulli(1-p), and dropped means exactly zero.

use super::gpu;
use latch::base::Dtype;
use latch::base::rng::{Purpose, StreamKey};
use latch::device::Device;
use latch::ops::Tensor;
use latch::ops::mask::{self, MaskKey, MaskSet, SiteKind, Sites};

fn keys(count: u32) -> Vec<MaskKey> {
    (0..count)
        .map(|rollout| MaskKey {
            stream: StreamKey::new(1, 2, 3, rollout, Purpose::Mask),
            step: rollout % 2,
            attempt: rollout / 2,
        })
        .collect()
}

#[test]
fn bits_are_the_documented_draws_on_any_thread_count() {
    let device = Device::cpu();
    let sites = Sites::new(123, 492, 3, &SiteKind::ALL);
    let keys = keys(37);
    let run = || {
        let set = MaskSet::fill(&device, sites.clone(), 0.3, &keys).unwrap();
        set.bits().download::<u32>().unwrap()
    };
    let bits = super::on_threads(1, run);
    assert_eq!(bits, super::on_threads(3, run));

    let threshold = (0.3_f64 * 4_294_967_296.0).floor() as u64;
    let mut word = 0;
    for key in &keys {
        // Site by site, each from a fresh word on.
        for site in sites.iter() {
            assert_eq!(site.number(), site.layer as u32 * 8 + site.kind as u32);
            for i in 0..site.width.div_ceil(32) * 32 {
                let draw = key.stream.word(site.number(), key.step, i as u32, key.attempt);
                let expected = i < site.width && u64::from(draw) >= threshold;
                let found = bits[word + i / 32] >> (i % 32) & 1 == 1;
                assert_eq!(found, expected, "site {site:?} element {i}");
            }
            word += site.width.div_ceil(32);
        }
    }
    assert_eq!(word, bits.len());
}

#[test]
fn the_share_of_dropped_elements_is_p() {
    let device = Device::cpu();
    for p in [0.1, 0.25, 0.9] {
        let set = MaskSet::fill(&device, Sites::new(768, 3072, 12, &SiteKind::ALL), p, &keys(8)).unwrap();
        let total: usize = 8 * set.sites().iter().map(|site| site.width).sum::<usize>();
        let kept: u32 = set.bits().download::<u32>().unwrap().iter().map(|word| word.count_ones()).sum();
        let (found, sigma) = (1.0 - f64::from(kept) / total as f64, (p * (1.0 - p) / total as f64).sqrt());
        assert!((found - p).abs() < 4.0 * sigma, "dropped {found}, expected {p} +- {sigma}");
    }
}

#[test]
fn apply_selects_and_scales_by_row() {
    let device = Device::cpu();
    for width in [1, 16, 33, 123, 768] {
        let rows = 41;
        let sites = Sites::new(width, 1, 1, &[SiteKind::Emb]);
        let masks = MaskSet::fill(&device, sites, 0.25, &keys(4)).unwrap();
        let bits = masks.bits().download::<u32>().unwrap();
        let words = width.div_ceil(32);
        let instance: Vec<i32> = (0..rows).map(|row| (row * 7 % 5) - 1).collect();
        let mut values = super::normals_f32("x", rows as usize * width);
        // Whatever is dropped becomes zero, even if it is not a number.
        for (n, x) in values.iter_mut().enumerate() {
            let (row, i) = (n / width, n % width);
            if instance[row] >= 0 && bits[instance[row] as usize * words + i / 32] >> (i % 32) & 1 == 0 {
                *x = if n % 2 == 0 { f32::NAN } else { f32::NEG_INFINITY };
            }
        }
        let instance_tensor = Tensor::from_host(&device, [rows as usize, 1], &instance).unwrap();
        let run = || {
            let mut x = Tensor::from_host(&device, [rows as usize, width], &values).unwrap();
            mask::apply(x.view_mut(), masks.at(SiteKind::Emb, 0, instance_tensor.view()).unwrap()).unwrap();
            x.download::<f32>().unwrap()
        };
        let found = super::on_threads(1, run);
        assert_eq!(found, super::on_threads(3, run));
        for (n, (&found, &x)) in found.iter().zip(&values).enumerate() {
            let (row, i) = (n / width, n % width);
            let expected = match instance[row] {
                -1 => x,
                r if bits[r as usize * words + i / 32] >> (i % 32) & 1 == 1 => x * (1.0_f64 / 0.75) as f32,
                _ => 0.0,
            };
            assert_eq!(found.to_bits(), expected.to_bits(), "width {width} row {row} element {i}");
        }
    }
}

#[test]
fn given_bytes_are_kept_as_they_are() {
    let device = Device::cpu();
    let sites = Sites::new(35, 1, 2, &[SiteKind::AttnOut]);
    let bytes: Vec<u8> = (0..2 * 35).map(|i| u8::from(i % 3 != 0)).collect();
    let set = MaskSet::from_keep(&device, sites.clone(), 0.5, 2, |_| Some(&bytes)).unwrap();
    let instance = Tensor::from_host(&device, [2, 1], &[1_i32, 0]).unwrap();
    let mut x = Tensor::from_host(&device, [2, 35], &[3.0_f32; 70]).unwrap();
    mask::apply(x.view_mut(), set.at(SiteKind::AttnOut, 1, instance.view()).unwrap()).unwrap();
    for (n, found) in x.download::<f32>().unwrap().into_iter().enumerate() {
        let (row, i) = (1 - n / 35, n % 35);
        assert_eq!(found, if bytes[row * 35 + i] != 0 { 6.0 } else { 0.0 });
    }
    let missing = MaskSet::from_keep(&device, sites.clone(), 0.5, 2, |_| None).unwrap_err().to_string();
    assert!(missing.contains("AttnOut in layer 0: found nothing, expected 2 x 35 bytes"), "{missing}");
    let short = MaskSet::from_keep(&device, sites, 0.5, 2, |_| Some(&bytes[1..])).unwrap_err().to_string();
    assert!(short.contains("found 69 bytes, expected 2 x 35 bytes"), "{short}");
}

#[test]
fn p_zero_and_absent_sites_mask_nothing() {
    let device = Device::cpu();
    let sites = Sites::new(8, 32, 1, &[SiteKind::AttnOut]);
    let instance = Tensor::from_host(&device, [1, 1], &[0_i32]).unwrap();
    let none = MaskSet::fill(&device, sites.clone(), 0.0, &keys(1)).unwrap();
    assert!(none.at(SiteKind::AttnOut, 0, instance.view()).is_none());
    let some = MaskSet::fill(&device, sites, 0.5, &keys(1)).unwrap();
    assert!(some.at(SiteKind::AttnOut, 0, instance.view()).is_some());
    assert!(some.at(SiteKind::AttnOut, 1, instance.view()).is_none());
    assert!(some.at(SiteKind::MlpHid, 0, instance.view()).is_none());
}

#[test]
fn misuse_is_named() {
    let device = Device::cpu();
    let sites = Sites::new(8, 32, 1, &[SiteKind::Emb]);
    for p in [1.0, -0.1, f64::NAN, f64::INFINITY] {
        let message = MaskSet::fill(&device, sites.clone(), p, &keys(1)).unwrap_err().to_string();
        assert!(message.contains("expected 0 <= p < 1"), "{message}");
    }
    let set = MaskSet::fill(&device, sites, 0.5, &keys(2)).unwrap();
    let apply = |instance: &[i32], width: usize| {
        let instance = Tensor::from_host(&device, [instance.len(), 1], instance).unwrap();
        let mut x = Tensor::from_host(&device, [2, width], &vec![1.0_f32; 2 * width]).unwrap();
        mask::apply(x.view_mut(), set.at(SiteKind::Emb, 0, instance.view()).unwrap()).unwrap_err().to_string()
    };
    assert_eq!(apply(&[0, 2], 8), "mask instances: found index 2 at entry 1, expected -1..2");
    assert_eq!(apply(&[-2, 0], 8), "mask instances: found index -2 at entry 0, expected -1..2");
    assert_eq!(apply(&[0, 0], 9), "apply mask: found width 8, expected 9");
    assert_eq!(apply(&[0], 8), "apply mask instances: found 1 rows of 1, expected 2 rows of 1");
}

#[test]
fn gpu_bits_equal_the_cpu_s() {
    for (width, hidden, layers, instances) in
        [(1, 1, 1, 1), (33, 65, 2, 3), (768, 3072, 2, 9), (896, 4864, 1, 2), (40, 7, 37, 3)]
    {
        let sites = Sites::new(width, hidden, layers, &SiteKind::ALL);
        for p in [0.0, 0.1, 0.25, 1.0 - f64::EPSILON] {
            let draw = |device: &Device| {
                let mut set = MaskSet::fill(device, sites.clone(), p, &keys(instances)).unwrap();
                // Fewer keys than instances leave the rest as it was.
                set.draw(&keys(instances + 1)[instances as usize / 2 + 1..instances as usize]).unwrap();
                set.bits().download::<u32>().unwrap()
            };
            let expected = draw(&Device::cpu());
            for device in gpu::devices() {
                assert_eq!(draw(&device), expected, "{width} x {hidden} x {layers} x {instances}, p = {p}");
            }
        }
    }
}

#[test]
fn gpu_apply_equals_the_cpu_to_the_bit() {
    for device in gpu::devices().into_iter().chain(gpu::orders()) {
        for (rows, cols) in gpu::ROW_SHAPES {
            let run = |device: &Device, dtype| {
                let mut values = gpu::exact("apply", rows * cols, Dtype::Bf16);
                // What is dropped becomes zero, even if it is not a number; kept elements must be.
                let (masks, instance) = gpu::masks(device, rows, cols);
                let bits = masks.bits().download::<u32>().unwrap();
                let (stride, offset) = (bits.len() / 5, cols.div_ceil(32));
                let instances = instance.download::<i32>().unwrap();
                for (n, value) in values.iter_mut().enumerate() {
                    let (row, c) = (n / cols, n % cols);
                    let Ok(at) = usize::try_from(instances[row]) else { continue };
                    if bits[at * stride + offset + c / 32] >> (c % 32) & 1 == 0 {
                        *value = f64::NAN;
                    }
                }
                let mut x = gpu::tensor(device, [rows, cols], &values, dtype);
                mask::apply(x.view_mut(), gpu::masked_site(&masks, instance.view()).unwrap()).unwrap();
                gpu::values(x.view())
            };
            let cpu = run(&Device::cpu(), Dtype::F32);
            for dtype in gpu::DTYPES {
                assert_eq!(run(&device, dtype), gpu::round(&cpu, dtype), "{dtype} {rows} x {cols}");
            }
        }
    }
}
