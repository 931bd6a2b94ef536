use super::*;
use crate::base::Dtype;
use crate::cpu::parallel::with_threads;
use crate::device::Traffic;
use crate::ops::linear::{Layout, forward};

const INPUTS: usize = 67;

fn tensor(shape: impl Into<crate::base::Shape>, dtype: Dtype, seed: usize) -> Tensor {
    let mut tensor = Tensor::zeros(&Device::cpu(), shape, dtype).unwrap();
    let count = tensor.shape().elements();
    let numbers: Vec<f64> =
        (0..count).map(|i| ((i * 7919 + seed * 31) % 1013) as f64 / 1013.0 - 0.5).collect();
    tensor.upload_numbers(0, &numbers).unwrap();
    tensor
}

/// Three maps: two windows of a fused weight, and one of its own without a bias.
struct Maps {
    projections: [Projection; 3],
    weights: [Tensor; 2],
    bias: Tensor,
    x: Tensor,
}

impl Maps {
    fn new(rows: usize, activations: Dtype, weights: [Dtype; 2]) -> Maps {
        Maps {
            projections: [
                Projection { layout: Layout::InOut, inputs: INPUTS, outputs: 0..64 },
                Projection { layout: Layout::InOut, inputs: INPUTS, outputs: 64..149 },
                Projection::whole(Layout::OutIn, INPUTS, 33),
            ],
            weights: [tensor([INPUTS, 149], weights[0], 1), tensor([33, INPUTS], weights[1], 2)],
            bias: tensor([149], activations, 3),
            x: tensor([rows, INPUTS], activations, 4),
        }
    }

    fn run(&self, forward: impl FnOnce(View, [Map; 3]) -> Result<()>) -> (Vec<Vec<f64>>, usize) {
        let rows = self.x.view().count();
        let zeros = |p: &Projection| Tensor::zeros(&Device::cpu(), [rows, p.outputs.len()], self.x.dtype());
        let mut outputs = self.projections.each_ref().map(|p| zeros(p).unwrap());
        let [first, second, third] = outputs.each_mut().map(Tensor::view_mut);
        let [p, q, r] = &self.projections;
        let map = |projection, weight, bias, output| Map { projection, weight, bias, output };
        let before = Traffic::products_here();
        let maps = [
            map(p, &self.weights[0], Some(&self.bias), first),
            map(q, &self.weights[0], Some(&self.bias), second),
            map(r, &self.weights[1], None, third),
        ];
        forward(self.x.view(), maps).unwrap();
        let products = Traffic::products_here() - before;
        (outputs.iter().map(|output| output.view().numbers().unwrap()).collect(), products)
    }

    fn one_by_one(&self) -> (Vec<Vec<f64>>, usize) {
        self.run(|x, maps| {
            maps.into_iter().try_for_each(|map| forward(x, map.projection, map.weight, map.bias, map.output))
        })
    }

    fn copied(&self) -> [bool; 2] {
        let [p, _, r] = &self.projections;
        [(&self.weights[0], p), (&self.weights[1], r)].map(|(weight, p)| match weight.dtype() {
            Dtype::Bf16 => weight.reading_order().current::<bf16>(p).is_some(),
            Dtype::F64 => weight.reading_order().current::<f64>(p).is_some(),
            _ => weight.reading_order().current::<f32>(p).is_some(),
        })
    }
}

#[test]
fn maps_at_once_have_the_bits_and_the_count_of_maps_one_by_one() {
    let types = [
        (Dtype::F32, [Dtype::F32; 2]),
        (Dtype::F64, [Dtype::F64; 2]),
        (Dtype::F32, [Dtype::Bf16; 2]),
        (Dtype::F32, [Dtype::Bf16, Dtype::F32]),
        (Dtype::F32, [Dtype::F32, Dtype::Bf16]),
    ];
    let order = crate::ops::reading_order::at_most(1, 1) == 1;
    for (activations, weights) in types {
        for rows in [0, 1, 5, 32, 40] {
            let maps = Maps::new(rows, activations, weights);
            let expected = maps.one_by_one();
            assert_eq!(expected.1, 3);
            for threads in [1, 3, 2, 3, 1] {
                let found = with_threads(threads, || maps.run(forward_each));
                assert_eq!(found, expected, "{rows} rows of {activations} by {weights:?}");
            }
            assert_eq!(maps.copied(), [order && rows <= 32; 2], "{rows} rows by {weights:?}");
        }
    }
}

#[test]
fn a_weight_that_changed_is_read_anew() {
    let mut maps = Maps::new(4, Dtype::F32, [Dtype::F32; 2]);
    for _ in 0..6 {
        maps.run(forward_each);
    }
    let before = maps.run(forward_each);
    for at in 0..2 {
        maps.weights[at].upload_numbers(0, &[9.0, 9.0, 9.0]).unwrap();
        let fresh = Maps::new(4, Dtype::F32, [Dtype::F32; 2]);
        let mut fresh = Maps { x: tensor([4, INPUTS], Dtype::F32, 4), ..fresh };
        for (fresh, weight) in fresh.weights.iter_mut().zip(&maps.weights) {
            fresh.upload_numbers(0, &weight.view().numbers().unwrap()).unwrap();
        }
        let expected = fresh.one_by_one();
        assert_ne!(expected, before);
        for _ in 0..6 {
            assert_eq!(maps.run(forward_each), expected);
        }
    }
}

#[test]
fn a_map_that_does_not_fit_is_refused_before_anything_is_computed() {
    let maps = Maps::new(2, Dtype::F32, [Dtype::F32; 2]);
    let mut wrong = Tensor::zeros(&Device::cpu(), [2, 32], Dtype::F32).unwrap();
    maps.run(|x, [first, second, third]| {
        let third = Map { output: wrong.view_mut(), ..third };
        let error = forward_each(x, [first, second, third]).unwrap_err().to_string();
        assert!(error.contains("linear output"), "{error}");
        Ok(())
    });
    let (outputs, _) = maps.run(|x, [first, second, third]| {
        let third = Map { bias: Some(&maps.bias), ..third };
        assert!(forward_each(x, [first, second, third]).is_err());
        Ok(())
    });
    assert!(outputs.iter().flatten().all(|&y| y == 0.0));
}
