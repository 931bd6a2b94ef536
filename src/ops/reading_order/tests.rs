use super::*;
use crate::base::Dtype;
use crate::device::{Device, Element};
use crate::ops::adamw::{self, Hyper, Moments};
use crate::ops::{Tensor, linear};
use half::bf16;

const INPUTS: usize = 70;
const OUTPUTS: usize = 150;

/// Numbers between -1 and 1 that bf16 does not round.
fn numbers(count: usize, seed: usize) -> Vec<f64> {
    (0..count).map(|i| ((i * 37 + seed * 101) % 255) as f64 / 128.0 - 1.0).collect()
}

fn tensor(shape: [usize; 2], dtype: Dtype, seed: usize) -> Tensor {
    let mut tensor = Tensor::zeros(&Device::cpu(), shape, dtype).unwrap();
    tensor.upload_numbers(0, &numbers(shape[0] * shape[1], seed)).unwrap();
    tensor
}

fn shape(layout: Layout) -> [usize; 2] {
    if layout == Layout::OutIn { [OUTPUTS, INPUTS] } else { [INPUTS, OUTPUTS] }
}

fn activations(weight: &Tensor) -> Dtype {
    if weight.dtype() == Dtype::F64 { Dtype::F64 } else { Dtype::F32 }
}

fn product(weight: &Tensor, layout: Layout, rows: usize) -> Vec<f64> {
    let dtype = activations(weight);
    let x = tensor([rows, INPUTS], dtype, 7);
    let mut y = Tensor::zeros(&Device::cpu(), [rows, OUTPUTS], dtype).unwrap();
    let projection = Projection::whole(layout, INPUTS, OUTPUTS);
    linear::forward(x.view(), &projection, weight, None, y.view_mut()).unwrap();
    y.view().numbers().unwrap()
}

/// What a tensor that was never read gives.
fn anew(weight: &Tensor, layout: Layout, rows: usize) -> Vec<f64> {
    let mut twin = Tensor::zeros(&Device::cpu(), shape(layout), weight.dtype()).unwrap();
    twin.upload_numbers(0, &weight.view().numbers().unwrap()).unwrap();
    let y = product(&twin, layout, rows);
    assert!(!has_copy(&twin));
    y
}

fn has_copy(weight: &Tensor) -> bool {
    weight.reading_order().state.read().unwrap().of.is_some()
}

fn is_there_an_order() -> bool {
    let there = at_most(1, 1) == 1;
    if !there {
        println!("skipped: this CPU's products have no reading order");
    }
    there
}

#[test]
fn a_copy_is_made_after_some_products_of_few_rows_and_used() {
    if !is_there_an_order() {
        return;
    }
    for dtype in [Dtype::F32, Dtype::F64, Dtype::Bf16] {
        for layout in [Layout::OutIn, Layout::InOut] {
            let weight = tensor(shape(layout), dtype, 1);
            let expected = anew(&weight, layout, 5);
            for _ in 0..2 {
                product(&weight, layout, 33);
            }
            assert_eq!(weight.reading_order().products.load(Ordering::Relaxed), 0);
            for _ in 0..BEFORE {
                assert_eq!(product(&weight, layout, 5), expected);
                assert!(!has_copy(&weight));
            }
            for rows in [5, 1, 32] {
                let found = product(&weight, layout, rows);
                assert_eq!(found, anew(&weight, layout, rows), "{dtype} {layout:?} {rows} rows");
                assert!(has_copy(&weight));
            }
            // What is used is the copy: a product by a spoilt one is spoilt.
            let words = weight.reading_order().state.write().unwrap().words.take().unwrap();
            let mut words = Arc::into_inner(words).unwrap();
            words.words.fill(0);
            weight.reading_order().state.write().unwrap().words = Some(Arc::new(words));
            assert!(product(&weight, layout, 5).iter().all(|&y| y == 0.0));
        }
    }
}

fn adamw_step(weight: &mut Tensor) {
    let state = activations(weight);
    let gradient = tensor(weight.shape().as_matrix().into(), state, 3);
    let mut moments = Moments::new(weight).unwrap();
    let mut scale = Tensor::zeros(&Device::cpu(), [1], state).unwrap();
    scale.upload_numbers(0, &[1.0]).unwrap();
    let hyper = Hyper { lr: 0.1, beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.1, step: 1 };
    adamw::step(weight, &gradient, &mut moments, &hyper, &scale).unwrap();
}

fn spoil<T: Element>(numbers: &mut [T]) {
    numbers.iter_mut().for_each(|number| *number = T::zeroed());
}

#[test]
fn every_change_of_a_tensor_outdates_its_copy() {
    fn each<T: Element>(layout: Layout) {
        type Change<'a> = &'a dyn Fn(&mut Tensor);
        let one: T = bytemuck::pod_read_unaligned(&[0x80, 0x3f].repeat(4)[..size_of::<T>()]);
        let changes: [(&str, Change); 9] = [
            ("upload", &|w| w.upload(&[one; INPUTS * OUTPUTS]).unwrap()),
            ("upload_at", &|w| w.upload_at(INPUTS * OUTPUTS - 1, &[one]).unwrap()),
            ("prefetch_at", &|w| w.prefetch_at(3, &[one]).unwrap()),
            ("upload_numbers", &|w| w.upload_numbers(5, &[2.0, 3.0]).unwrap()),
            ("clear", &|w| w.clear().unwrap()),
            ("view_mut", &|w| spoil(&mut w.view_mut().slice::<T>().unwrap()[..1])),
            ("rows_mut", &|w| spoil(w.rows_mut(1..2).unwrap().slice::<T>().unwrap())),
            ("matrix_mut", &|w| spoil(w.matrix_mut(1, 2).unwrap().slice::<T>().unwrap())),
            ("adamw", &adamw_step),
        ];
        for (name, change) in changes {
            let mut weight = tensor(shape(layout), T::DTYPE, 1);
            let before = product(&weight, layout, 4);
            for _ in 0..BEFORE {
                product(&weight, layout, 4);
            }
            assert!(has_copy(&weight));
            change(&mut weight);
            assert!(!has_copy(&weight), "{name}");
            let expected = anew(&weight, layout, 4);
            assert_ne!(expected, before, "{name} changes nothing");
            for at in 0..BEFORE + 2 {
                assert_eq!(product(&weight, layout, 4), expected, "{name}, product {at}");
                assert_eq!(has_copy(&weight), at >= BEFORE, "{name}, product {at}");
            }
        }
    }
    if !is_there_an_order() {
        return;
    }
    for layout in [Layout::OutIn, Layout::InOut] {
        each::<f32>(layout);
        each::<f64>(layout);
        each::<bf16>(layout);
    }
}

#[test]
fn a_copy_serves_the_layout_that_it_was_made_for() {
    if !is_there_an_order() {
        return;
    }
    let weight = tensor([64, 64], Dtype::F32, 1);
    let x = tensor([3, 64], Dtype::F32, 2);
    let product = |layout| {
        let mut y = Tensor::zeros(&Device::cpu(), [3, 64], Dtype::F32).unwrap();
        let projection = Projection::whole(layout, 64, 64);
        linear::forward(x.view(), &projection, &weight, None, y.view_mut()).unwrap();
        y.download::<f32>().unwrap()
    };
    let expected = [product(Layout::OutIn), product(Layout::InOut)];
    assert_ne!(expected[0], expected[1]);
    for _ in 0..6 {
        assert_eq!([product(Layout::OutIn), product(Layout::InOut)], expected);
    }
    // The product after the first three is one of the second layout.
    let order = weight.reading_order();
    assert!(order.current::<f32>(&Projection::whole(Layout::InOut, 64, 64)).is_some());
    assert!(order.current::<f32>(&Projection::whole(Layout::OutIn, 64, 64)).is_none());
}

#[test]
fn windows_that_begin_inside_of_a_panel_are_read_where_they_lie() {
    if !is_there_an_order() {
        return;
    }
    let weight = tensor(shape(Layout::InOut), Dtype::F32, 1);
    let whole = product(&weight, Layout::InOut, 3);
    let x = tensor([3, INPUTS], Dtype::F32, 7);
    for outputs in [64..OUTPUTS, 63..OUTPUTS, 0..1, 96..97, 7..7] {
        let mut y = Tensor::zeros(&Device::cpu(), [3, outputs.len()], Dtype::F32).unwrap();
        let projection = Projection { layout: Layout::InOut, inputs: INPUTS, outputs: outputs.clone() };
        for _ in 0..BEFORE + 2 {
            linear::forward(x.view(), &projection, &weight, None, y.view_mut()).unwrap();
            let expected: Vec<f64> =
                whole.chunks(OUTPUTS).flat_map(|row| row[outputs.clone()].to_vec()).collect();
            assert_eq!(y.view().numbers().unwrap(), expected, "{outputs:?}");
        }
    }
    assert!(has_copy(&weight));
}

/// Reads a matrix of `count` columns and 16 rows until it would have a copy.
fn read(order: &ReadingOrder, budget: &'static Budget, count: usize) -> bool {
    let numbers = vec![1.0_f32; 16 * count];
    let projection = Projection::whole(Layout::InOut, 16, count);
    let mut lent = None;
    for _ in 0..=BEFORE {
        lent = order.lend_within(budget, Matrix::row_major(&numbers, 16, count), &projection, 1);
    }
    lent.is_some()
}

#[test]
fn copies_keep_to_their_budget_and_give_memory_back() {
    if !is_there_an_order() {
        return;
    }
    static SMALL: Budget = Budget::new(20_000);
    let held = || SMALL.held.load(Ordering::Relaxed);
    let bytes = |cols| (prepacked_len::<f32>(16, cols).unwrap() * 4).next_multiple_of(8);
    let (mut first, second, third) = <(ReadingOrder, ReadingOrder, ReadingOrder)>::default();
    assert!(read(&first, &SMALL, 128));
    assert_eq!(held(), bytes(128));
    assert!(!read(&second, &SMALL, 256), "more than the budget");
    assert!(second.state.read().unwrap().words.is_none());
    assert_eq!(held(), bytes(128));
    assert!(read(&third, &SMALL, 64));
    assert_eq!(held(), bytes(128) + bytes(64));
    // A changed tensor keeps the memory and fills it again; as another matrix it gives it back first.
    first.outdate();
    assert_eq!(held(), bytes(128) + bytes(64));
    let kept = first.state.read().unwrap().words.as_ref().map(|words| words.words.as_ptr());
    assert!(read(&first, &SMALL, 128));
    assert_eq!(first.state.read().unwrap().words.as_ref().map(|words| words.words.as_ptr()), kept);
    first.outdate();
    assert!(read(&first, &SMALL, 160));
    assert_eq!(held(), bytes(160) + bytes(64));
    // A copy in use lives until it is given back, whatever becomes of its tensor.
    let lent: Lent<f32> = third.current(&Projection::whole(Layout::InOut, 16, 64)).unwrap();
    drop((first, second, third));
    assert_eq!(held(), bytes(64));
    drop(lent);
    assert_eq!(held(), 0);
}

#[test]
fn a_budget_is_never_exceeded_and_never_overflows() {
    let budget = Budget::new(100);
    assert!(budget.take(60) && !budget.take(41) && budget.take(40) && !budget.take(1));
    assert!(!budget.take(usize::MAX) && budget.take(0));
    assert_eq!(budget.held.load(Ordering::Relaxed), 100);
    assert_eq!(at_most(usize::MAX, 3), at_most(3 << 20, usize::MAX));
    assert_eq!((at_most(usize::MAX, 0), at_most(0, 3)), (0, 0));
}

#[test]
fn without_a_budget_or_memory_there_is_no_copy() {
    static NONE: Budget = Budget::new(0);
    assert!(!read(&ReadingOrder::default(), &NONE, 128));
    // What was counted for memory that the system refused is given back.
    static ENDLESS: Budget = Budget::new(usize::MAX);
    assert!(Words::new(1 << 57, &ENDLESS).is_none());
    assert_eq!(ENDLESS.held.load(Ordering::Relaxed), 0);
}

#[test]
fn threads_that_read_one_weight_agree() {
    let weight = tensor(shape(Layout::OutIn), Dtype::F32, 1);
    let expected = anew(&weight, Layout::OutIn, 2);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..20 {
                    assert_eq!(product(&weight, Layout::OutIn, 2), expected);
                }
            });
        }
    });
}
