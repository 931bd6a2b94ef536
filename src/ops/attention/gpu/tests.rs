use super::*;

#[test]
fn items_of_steps_fit_into_every_gpu() {
    for (dtype, head_dim) in
        [Dtype::F32, Dtype::Bf16].into_iter().flat_map(|d| (1..=256).map(move |h| (d, h)))
    {
        let shape = Shape::new(head_dim, dtype).unwrap();
        for (rows, kv_heads) in [(1, 1), (16 * FEW_BLOCKS, 1), (1 << 20, 8)] {
            let taken = shape.item_rows(rows, kv_heads);
            let bytes = shape.item_bytes(taken) + SHARED_OF_STEPS;
            assert!(taken.is_multiple_of(ITEM_ROWS.0) && taken > 0, "{dtype} {head_dim}: {taken} rows");
            assert!(bytes <= SHARED_OF_BLOCK, "{dtype} {head_dim}: {taken} rows take {bytes} bytes");
        }
    }
    let rows = |head_dim| Shape::new(head_dim, Dtype::F32).unwrap().item_rows(1 << 20, 8);
    assert_eq!([64, 96, 128, 256].map(rows), [64, 64, 48, 16]);
}
