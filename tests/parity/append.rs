//! Rows appended behind those appended before, on every device.

use super::gpu;
use half::bf16;
use latch::base::Dtype;
use latch::device::Device;
use latch::ops::append::{Append, Pair};
use latch::ops::{Tensor, index};

fn devices() -> Vec<Device> {
    std::iter::once(Device::cpu()).chain(gpu::devices()).chain(gpu::orders()).collect()
}

/// Widths of f32 rows: one element, odd ones, whole vectors, and more than a block copies.
const WIDTHS: [usize; 5] = [1, 3, 36, 768, 3001];

#[test]
fn rows_of_every_width_and_dtype_land_behind_those_before() {
    for device in devices() {
        let (count, places) = (5, 12);
        let wide: Vec<Vec<f32>> =
            WIDTHS.iter().map(|w| (0..count * w).map(|i| (i * 7 + w) as f32).collect()).collect();
        let narrow: Vec<bf16> = (0..count * 5).map(|i| bf16::from_f32(i as f32 - 3.0)).collect();
        // Two rows a place, as statistics of heads have.
        let whole: Vec<i32> = (0..2 * count as i32 * 3).map(|i| i - 9).collect();
        let mut sources: Vec<Tensor> = WIDTHS
            .iter()
            .zip(&wide)
            .map(|(&w, values)| Tensor::from_host(&device, [count, w], values).unwrap())
            .collect();
        sources.push(Tensor::from_host(&device, [count, 5], &narrow).unwrap());
        sources.push(Tensor::from_host(&device, [2 * count, 3], &whole).unwrap());
        let each = |n: usize| if n == WIDTHS.len() + 1 { 2 } else { 1 };
        let mut targets: Vec<Tensor> = sources
            .iter()
            .enumerate()
            .map(|(n, source)| {
                let cols = source.shape().as_matrix().1;
                Tensor::zeros(&device, [places * each(n), cols], source.dtype()).unwrap()
            })
            .collect();
        let mut place = Tensor::from_host(&device, [1, 1], &[3_u32]).unwrap();
        let mut append = Append::reserve(&device, sources.len()).unwrap();
        for appended in [count, 3] {
            let mut pairs: Vec<Pair> = sources
                .iter()
                .zip(&mut targets)
                .enumerate()
                .map(|(n, (source, target))| Pair::new(source, target, each(n)))
                .collect();
            append.run(&mut pairs, appended, place.view()).unwrap();
            index::advance(place.view_mut(), appended as u32).unwrap();
        }
        assert_eq!(place.download::<u32>().unwrap(), [3 + 5 + 3]);
        for ((width, values), target) in WIDTHS.iter().zip(&wide).zip(&targets) {
            let mut expected = vec![0.0; places * width];
            expected[3 * width..8 * width].copy_from_slice(values);
            expected[8 * width..11 * width].copy_from_slice(&values[..3 * width]);
            assert_eq!(target.download::<f32>().unwrap(), expected, "{}: width {width}", device.name());
        }
        let mut expected = vec![bf16::ZERO; places * 5];
        expected[15..40].copy_from_slice(&narrow);
        expected[40..55].copy_from_slice(&narrow[..15]);
        assert_eq!(targets[WIDTHS.len()].download::<bf16>().unwrap(), expected);
        let mut expected = vec![0; places * 6];
        expected[18..48].copy_from_slice(&whole);
        expected[48..66].copy_from_slice(&whole[..18]);
        assert_eq!(targets[WIDTHS.len() + 1].download::<i32>().unwrap(), expected);
    }
}

#[test]
fn what_lies_beyond_a_target_is_never_written() {
    let cpu = Device::cpu();
    for device in devices() {
        let source = Tensor::from_host(&device, [3, 2], &[1_u32, 2, 3, 4, 5, 6]).unwrap();
        let mut target = Tensor::zeros(&device, [4, 2], Dtype::U32).unwrap();
        let place = Tensor::from_host(&device, [1, 1], &[2_u32]).unwrap();
        let mut append = Append::reserve(&device, 1).unwrap();
        let outcome = append.run(&mut [Pair::new(&source, &mut target, 1)], 3, place.view());
        if device.name() == cpu.name() {
            let message = outcome.unwrap_err().to_string();
            assert_eq!(message, "append: found places 2..5, expected inside 4");
        } else {
            outcome.unwrap();
            assert_eq!(target.download::<u32>().unwrap(), [0, 0, 0, 0, 1, 2, 3, 4]);
        }
    }
}

#[test]
fn wrong_operands_are_told_what_they_should_be() {
    for device in devices() {
        let source = Tensor::zeros(&device, [3, 2], Dtype::F32).unwrap();
        let mut target = Tensor::zeros(&device, [4, 2], Dtype::Bf16).unwrap();
        let place = Tensor::zeros(&device, [1, 1], Dtype::U32).unwrap();
        let mut append = Append::reserve(&device, 1).unwrap();
        let mut run =
            |pairs: &mut [Pair], count| append.run(pairs, count, place.view()).unwrap_err().to_string();
        let message = run(&mut [Pair::new(&source, &mut target, 1)], 3);
        assert_eq!(message, "append target: element type bf16, expected f32");
        let mut target = Tensor::zeros(&device, [4, 2], Dtype::F32).unwrap();
        let message = run(&mut [Pair::new(&source, &mut target, 2)], 2);
        assert_eq!(message, "append source: found 3 rows, expected at least 2 x 2");
        let mut other = Tensor::zeros(&device, [4, 2], Dtype::F32).unwrap();
        let mut pairs = [Pair::new(&source, &mut target, 1), Pair::new(&source, &mut other, 1)];
        assert_eq!(run(&mut pairs, 1), "append: found 2 pairs, expected at most 1");
    }
}
