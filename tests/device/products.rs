//! Linear maps on a device whose library multiplies, against the CPU: windows of weights in both layouts, all dtypes.
//!
//! The library is the stand-in's, which multiplies by the definition; all numbers are small integers, so sums are exact.

use half::bf16;
use latch::base::Dtype;
use latch::device::{Device, Matmul};
use latch::ops::Tensor;
use latch::ops::linear::{Accumulate, Gradients, Layout, Projection, backward, forward, forward_gelu};

const ROWS: usize = 3;
const INPUTS: usize = 5;
const TOTAL: usize = 8;

/// Activations and matrices.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    F32,
    /// bf16 matrices under f32 activations.
    Rounded,
    Bf16,
}

impl Kind {
    fn activations(self) -> Dtype {
        if self == Kind::Bf16 { Dtype::Bf16 } else { Dtype::F32 }
    }

    fn matrices(self) -> Dtype {
        if self == Kind::F32 { Dtype::F32 } else { Dtype::Bf16 }
    }
}

/// Integers from -4 to 4.
fn numbers(device: &Device, shape: [usize; 2], dtype: Dtype, salt: usize) -> Tensor {
    let values: Vec<f32> =
        (0..shape[0] * shape[1]).map(|at| ((at * 7 + salt * 5 + at / 3) % 9) as f32 - 4.0).collect();
    match dtype {
        Dtype::Bf16 => {
            let narrow: Vec<bf16> = values.iter().map(|&value| bf16::from_f32(value)).collect();
            Tensor::from_host(device, shape, &narrow).unwrap()
        }
        _ => Tensor::from_host(device, shape, &values).unwrap(),
    }
}

fn values(tensor: &Tensor) -> Vec<f32> {
    match tensor.dtype() {
        Dtype::Bf16 => tensor.download::<bf16>().unwrap().into_iter().map(f32::from).collect(),
        _ => tensor.download().unwrap(),
    }
}

/// dx, dw and y of one map.
struct Case {
    projection: Projection,
    x: Tensor,
    w: Tensor,
    dy: Tensor,
    bias: Tensor,
    dx: Tensor,
    dw: Tensor,
    y: Tensor,
}

impl Case {
    fn new(device: &Device, layout: Layout, kind: Kind) -> Case {
        let (projection, activations) =
            (Projection { layout, inputs: INPUTS, outputs: 2..6 }, kind.activations());
        let shape = if layout == Layout::OutIn { [TOTAL, INPUTS] } else { [INPUTS, TOTAL] };
        let bias: Vec<f32> = (0..TOTAL).map(|at| at as f32 - 3.0).collect();
        Case {
            projection,
            x: numbers(device, [ROWS, INPUTS], activations, 1),
            w: numbers(device, shape, kind.matrices(), 2),
            dy: numbers(device, [ROWS, 4], activations, 3),
            bias: Tensor::from_host(device, [TOTAL], &bias).unwrap(),
            dx: Tensor::zeros(device, [ROWS, INPUTS], activations).unwrap(),
            dw: numbers(device, shape, Dtype::F32, 4),
            y: Tensor::zeros(device, [ROWS, 4], Dtype::F32).unwrap(),
        }
    }

    fn backward(&mut self, accumulate: Accumulate) {
        let Case { projection, x, w, dy, dx, dw, .. } = self;
        let gradients = Gradients {
            dx: Some((dx.view_mut(), accumulate)),
            dw: Some((dw, accumulate)),
            ..Gradients::default()
        };
        backward(dy.view(), x.view(), projection, w, gradients).unwrap();
    }

    fn forward(&mut self) {
        let Case { projection, x, w, bias, y, .. } = self;
        forward(x.view(), projection, w, Some(bias), y.view_mut()).unwrap();
    }
}

/// The scenario: gradients by the library unless our kernels were chosen, forward products where it was.
pub fn linear_maps() {
    let (gpu, cpu) = (Device::open("cuda:0").unwrap(), Device::cpu());
    for layout in [Layout::OutIn, Layout::InOut] {
        for kind in [Kind::F32, Kind::Rounded, Kind::Bf16] {
            gpu.choose_matmul(Matmul::Auto).unwrap();
            let what = format!("{layout:?} {kind:?}");
            // The CPU has no bf16 activations: these integers are the same in f32.
            let cpu_kind = if kind == Kind::Bf16 { Kind::F32 } else { kind };
            let (mut found, mut expected) =
                (Case::new(&gpu, layout, kind), Case::new(&cpu, layout, cpu_kind));
            for accumulate in [Accumulate::Assign, Accumulate::Add] {
                found.backward(accumulate);
                expected.backward(accumulate);
                assert_eq!(values(&found.dx), values(&expected.dx), "{what} {accumulate:?} dx");
                assert_eq!(values(&found.dw), values(&expected.dw), "{what} {accumulate:?} dw");
            }
            // Our kernels do nothing here: what they would have written stays as it was.
            found.forward();
            assert_eq!(values(&found.y), [0.0; ROWS * 4], "{what}: a forward product by the library");
            gpu.choose_matmul(Matmul::Library).unwrap();
            found.forward();
            expected.forward();
            assert_eq!(values(&found.y), values(&expected.y), "{what} y");
            gpu.choose_matmul(Matmul::Own).unwrap();
            let before = values(&found.dw);
            found.backward(Accumulate::Assign);
            assert_eq!(values(&found.dw), before, "{what}: a gradient by the library");
        }
    }
    // With gelu behind it the product is the library's and gelu a kernel; without, both are one kernel.
    let mut case = Case::new(&gpu, Layout::OutIn, Kind::F32);
    let mut activated = Tensor::zeros(&gpu, [ROWS, 4], Dtype::F32).unwrap();
    for (choice, multiplied) in [(Matmul::Own, false), (Matmul::Library, true)] {
        gpu.choose_matmul(choice).unwrap();
        let Case { projection, x, w, bias, y, .. } = &mut case;
        forward_gelu(x.view(), projection, w, Some(bias), y.view_mut(), activated.view_mut()).unwrap();
        assert_eq!(values(y) != [0.0; ROWS * 4], multiplied);
    }
}
