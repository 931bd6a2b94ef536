//! The small integer operations of a decode step, on every device.

use super::gpu;
use half::bf16;
use latch::base::Dtype;
use latch::device::Device;
use latch::ops::{Tensor, index};

fn devices() -> Vec<Device> {
    std::iter::once(Device::cpu()).chain(gpu::devices()).collect()
}

#[test]
fn a_decode_step_needs_no_upload() {
    for device in devices() {
        let mut positions = Tensor::from_host(&device, [4, 1], &[7_u32, 0, 41, u32::MAX]).unwrap();
        let mut ids = Tensor::from_host(&device, [4, 1], &[-1_i32; 4]).unwrap();
        let tokens = Tensor::from_host(&device, [4, 1], &[5_u32, 50_259, 0, 1]).unwrap();
        let before = device.traffic().count();
        index::advance(positions.rows_mut(1..4).unwrap(), 2).unwrap();
        index::set_ids(tokens.rows(0..3).unwrap(), ids.rows_mut(0..3).unwrap()).unwrap();
        assert_eq!(device.traffic().count(), before);
        assert_eq!(positions.download::<u32>().unwrap(), [7, 2, 43, 1]);
        assert_eq!(ids.download::<i32>().unwrap(), [5, 50_259, 0, -1]);
        index::fill(ids.rows_mut(1..2).unwrap(), -1_i32).unwrap();
        assert_eq!(ids.download::<i32>().unwrap(), [5, -1, 0, -1]);
        let message = index::fill(ids.view_mut(), 1_u32).unwrap_err().to_string();
        assert_eq!(message, "fill: element type i32, expected u32");
        let message = index::set_ids(tokens.view(), ids.rows_mut(0..3).unwrap()).unwrap_err().to_string();
        assert_eq!(message, "set_ids ids: found 3 rows of 1, expected 4 rows of 1");
    }
}

#[test]
fn entries_repeat_with_something_added() {
    for device in devices() {
        for count in [1, 3, 256, 300] {
            let entries: Vec<u32> = (0..2 * count as u32 + 5).collect();
            let mut tensor = Tensor::from_host(&device, [entries.len(), 1], &entries).unwrap();
            index::repeat(&mut tensor, 2..2 + count, count + 2, 7).unwrap();
            index::repeat(&mut tensor, 0..2, 0, -1).unwrap();
            let mut expected = entries.clone();
            for n in 0..count {
                expected[count + 2 + n] = entries[2 + n] + 7;
            }
            expected[..2].copy_from_slice(&[u32::MAX, 0]);
            assert_eq!(tensor.download::<u32>().unwrap(), expected);
        }
        let mut signed = Tensor::from_host(&device, [4, 1], &[-1_i32, 3, 0, 0]).unwrap();
        index::repeat(&mut signed, 0..2, 2, -2).unwrap();
        assert_eq!(signed.download::<i32>().unwrap(), [-1, 3, -3, 1]);
        index::repeat(&mut signed, 1..1, 0, 5).unwrap();
        let message = index::repeat(&mut signed, 0..3, 1, 0).unwrap_err().to_string();
        assert_eq!(message, "repeat: found 0..3 to 1..4, expected the same entries, or others");
        let message = index::repeat(&mut signed, 0..3, 2, 0).unwrap_err().to_string();
        assert_eq!(message, "repeat: found 2..5, expected inside 4 entries");
        let mut wide = Tensor::zeros(&device, [4, 1], Dtype::F32).unwrap();
        let message = index::repeat(&mut wide, 0..1, 1, 0).unwrap_err().to_string();
        assert_eq!(message, "repeat: element type f32, expected u32 or i32");
    }
}

#[test]
fn elements_of_every_kind_are_filled_and_no_others() {
    for device in devices() {
        for count in [1, 31, 600] {
            let mut x = Tensor::zeros(&device, [count + 2, 1], Dtype::F32).unwrap();
            index::fill(x.rows_mut(1..count + 1).unwrap(), -1.5_f32).unwrap();
            let mut expected = vec![-1.5; count + 2];
            (expected[0], expected[count + 1]) = (0.0, 0.0);
            assert_eq!(x.download::<f32>().unwrap(), expected);
            let mut x = Tensor::zeros(&device, [count + 2, 1], Dtype::Bf16).unwrap();
            index::fill(x.rows_mut(1..count + 1).unwrap(), bf16::from_f32(-1.5)).unwrap();
            let expected: Vec<bf16> = expected.into_iter().map(bf16::from_f32).collect();
            assert_eq!(x.download::<bf16>().unwrap(), expected);
            let mut x = Tensor::zeros(&device, [count, 1], Dtype::U32).unwrap();
            index::fill(x.view_mut(), u32::MAX - 1).unwrap();
            assert_eq!(x.download::<u32>().unwrap(), vec![u32::MAX - 1; count]);
        }
    }
}
