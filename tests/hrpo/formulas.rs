//! Gates and mixtures against PyTorch (tools/hrpo_golden.py).

use super::*;

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

#[track_caller]
fn near(what: &str, found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (at, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= 1e-12 * b.abs().max(1.0), "{what} {at}: {a} {b}");
    }
}

#[test]
fn gates_and_mixtures_are_those_of_the_formulas_in_pytorch() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/hrpo.json");
    let golden: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let device = Device::cpu();
    let upload = |name: &str, rows: usize| {
        let values = floats(&golden[name]);
        Tensor::from_host(&device, [rows, values.len() / rows], &values).unwrap()
    };
    // Mixtures, through the model's own door.
    let model = model("llama", Dtype::F64, &device);
    let mut sequences = room(&model, 4, Record::Nothing);
    let law = Law::Categorical {
        temperature: golden["temperature"].as_f64().unwrap(),
        top_k: Some(golden["top_k"].as_u64().unwrap() as usize),
        top_p: golden["top_p"].as_f64(),
        min_p: None,
    };
    model.note_mixtures(&mut sequences, upload("logits", 4).view(), &law).unwrap();
    let mixtures = sequences.mixtures().unwrap();
    let table = upload("table", 61);
    let width = table.shape().as_matrix().1;
    let embeddings = table.download::<f64>().unwrap();
    let mut soft = Vec::new();
    for (n, mixture) in mixtures.iter().enumerate() {
        let ids: Vec<f64> = mixture.iter().map(|(id, _)| f64::from(*id)).collect();
        assert_eq!(ids, floats(&golden["ids"][n]));
        near("p", &mixture.iter().map(|(_, p)| *p).collect::<Vec<_>>(), &floats(&golden["p"][n]));
        soft.extend(
            (0..width)
                .map(|c| mixture.iter().map(|(id, p)| p * embeddings[*id as usize * width + c]).sum::<f64>()),
        );
    }
    near("h", &soft, &floats(&golden["soft"]));

    // The gates.
    let tokens: Vec<usize> = floats(&golden["tokens"]).into_iter().map(|id| id as usize).collect();
    let e: Vec<f64> =
        tokens.iter().flat_map(|id| embeddings[id * width..(id + 1) * width].to_vec()).collect();
    let of = |values: &[f64]| Tensor::from_host(&device, [4, width], values).unwrap();
    let vector = |name: &str| Tensor::from_host(&device, [width], &floats(&golden[name])).unwrap();
    let zeros = || Tensor::zeros(&device, [4, width], Dtype::F64).unwrap();
    let values = |view: View| view.download::<f64>().unwrap();
    let (e, h, dx, lambda) = (of(&e), of(&soft), upload("dx", 4), vector("Lambda"));
    let shares = floats(&golden["shares"]);
    let own: Vec<f64> = shares.iter().map(|&share| latch::model::gates::lambda_of(share)).collect();
    near("Lambda of a share", &own, &values(lambda.view()));
    let projection = Projection::whole(linear::Layout::OutIn, width, width);
    let (w, b) = (["W_r", "W_i"].map(|name| upload(name, width)), ["b_r", "b_i"].map(vector));
    let [mut p, mut q, mut x, mut de, mut dp, mut dq, mut terms] = [(); 7].map(|()| zeros());
    linear::forward(e.view(), &projection, &w[0], Some(&b[0]), p.view_mut()).unwrap();
    linear::forward(e.view(), &projection, &w[1], Some(&b[1]), q.view_mut()).unwrap();
    let inputs = gated_mixture::Inputs {
        token: e.view(),
        soft: h.view(),
        reset: p.view(),
        input: q.view(),
        lambda: &lambda,
    };
    gated_mixture::forward(&inputs, x.view_mut()).unwrap();
    near("x", &values(x.view()), &floats(&golden["x"]));
    let mut dlambda = Tensor::zeros(&device, [width], Dtype::F64).unwrap();
    let out = gated_mixture::Gradients {
        dtoken: de.view_mut(),
        dreset: dp.view_mut(),
        dinput: dq.view_mut(),
        terms: terms.view_mut(),
        dlambda: &mut dlambda,
    };
    gated_mixture::backward(dx.view(), &inputs, out).unwrap();
    near("d Lambda", &values(dlambda.view()), &floats(&golden["d_Lambda"]));
    for (n, (gate, dy)) in [("r", &dp), ("i", &dq)].into_iter().enumerate() {
        let mut dw = Tensor::zeros(&device, [width, width], Dtype::F64).unwrap();
        let mut dbias = Tensor::zeros(&device, [width], Dtype::F64).unwrap();
        let dx = Some((de.view_mut(), Accumulate::Add));
        let out = linear::Gradients { dx, dw: Some((&mut dw, Accumulate::Add)), dbias: Some(&mut dbias) };
        linear::backward(dy.view(), e.view(), &projection, &w[n], out).unwrap();
        near("d W", &values(dw.view()), &floats(&golden[format!("d_W_{gate}")]));
        near("d b", &values(dbias.view()), &floats(&golden[format!("d_b_{gate}")]));
    }
    let (de, mut d_table) = (values(de.view()), vec![0.0; 61 * width]);
    for (n, id) in tokens.iter().enumerate() {
        (0..width).for_each(|c| d_table[id * width + c] += de[n * width + c]);
    }
    near("d e", &d_table, &floats(&golden["d_table"]));
}
