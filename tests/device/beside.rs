//! Copies beside the computation: weights on their way while the next tensor is read, tokens on their way to the host.
//! Whatever order the streams allow, the bits are the same; without one of the waits the checker reports it under each.

use super::launcher;
use crate::gpu_models::on;
use latch::base::{Dtype, Result};
use latch::device::{
    Argument, Device, Download, Event, Graph, Grid, Kernel, Launcher, LibraryProduct, Matmul, Properties,
    SimulatorOptions, Statistics, Steps, Stream, Traffic,
};
use latch::model::{Model, Precision};
use latch::ops::Tensor;
use latch::ops::sampler::Law;
use latch::rollout::generate::{Generated, Options, generate};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Orders that are tried.
const ORDERS: u64 = 12;

/// A launcher that forgets to let one of the streams wait for events.
#[derive(Debug)]
struct Deaf {
    inner: Arc<dyn Launcher>,
    deaf: Option<Stream>,
}

impl Launcher for Deaf {
    fn wait(&self, stream: Stream, event: &Event) -> Result<()> {
        if self.deaf == Some(stream) { Ok(()) } else { self.inner.wait(stream, event) }
    }
    fn name(&self) -> String {
        self.inner.name()
    }
    fn properties(&self) -> &Properties {
        self.inner.properties()
    }
    fn traffic(&self) -> &Traffic {
        self.inner.traffic()
    }
    fn statistics(&self) -> Statistics {
        self.inner.statistics()
    }
    fn memory_free(&self) -> Result<usize> {
        self.inner.memory_free()
    }
    fn accountant(&self, memory: Option<usize>) -> Arc<dyn Launcher> {
        self.inner.accountant(memory)
    }
    fn allocate(&self, bytes: usize) -> Result<u64> {
        self.inner.allocate(bytes)
    }
    fn free(&self, address: u64, bytes: usize) {
        self.inner.free(address, bytes)
    }
    fn clear(&self, address: u64, bytes: usize) -> Result<()> {
        self.inner.clear(address, bytes)
    }
    fn upload(&self, address: u64, bytes: &[u8]) -> Result<()> {
        self.inner.upload(address, bytes)
    }
    fn download(&self, address: u64, bytes: &mut [u8]) -> Result<()> {
        self.inner.download(address, bytes)
    }
    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        self.inner.copy(from, to, bytes)
    }
    fn launch_on(
        &self,
        stream: Stream,
        kernel: &'static Kernel,
        grid: Grid,
        list: &[Argument],
    ) -> Result<()> {
        self.inner.launch_on(stream, kernel, grid, list)
    }
    fn upload_on(&self, stream: Stream, address: u64, bytes: &[u8]) -> Result<()> {
        self.inner.upload_on(stream, address, bytes)
    }
    fn download_on(&self, stream: Stream, address: u64, bytes: usize) -> Result<Download> {
        self.inner.download_on(stream, address, bytes)
    }
    fn receive(&self, download: Download, bytes: &mut [u8]) -> Result<()> {
        self.inner.receive(download, bytes)
    }
    fn record(&self, stream: Stream) -> Result<Event> {
        self.inner.record(stream)
    }
    fn reached(&self, event: &Event) -> Result<bool> {
        self.inner.reached(event)
    }
    fn elapsed(&self, from: &Event, to: &Event) -> Result<Option<f32>> {
        self.inner.elapsed(from, to)
    }
    fn synchronise(&self) -> Result<()> {
        self.inner.synchronise()
    }
    fn matmul_library(&self) -> Result<Option<String>> {
        self.inner.matmul_library()
    }
    fn choose_matmul(&self, choice: Matmul) -> Result<()> {
        self.inner.choose_matmul(choice)
    }
    fn library_multiplies(&self, gradient: bool) -> Result<bool> {
        self.inner.library_multiplies(gradient)
    }
    fn multiply(&self, product: &LibraryProduct) -> Result<()> {
        self.inner.multiply(product)
    }
    fn uses_graphs(&self) -> bool {
        self.inner.uses_graphs()
    }
    fn use_graphs(&self, on: bool) {
        self.inner.use_graphs(on)
    }
    fn captures(&self) -> bool {
        self.inner.captures()
    }
    fn capture(&self, body: &mut dyn FnMut() -> Result<()>) -> Result<Graph> {
        self.inner.capture(body)
    }
    fn launch_graph(&self, graph: &Graph) -> Result<()> {
        self.inner.launch_graph(graph)
    }
    fn rebind(&self, graph: &mut Graph, index: usize, arguments: &[Argument]) -> Result<()> {
        self.inner.rebind(graph, index, arguments)
    }
}

/// A simulated GPU whose streams run in order number `schedule`.
fn device(schedule: u64, deaf: Option<Stream>) -> Device {
    let inner = launcher(SimulatorOptions { schedule, ..Default::default() });
    Device::Gpu(Arc::new(Deaf { inner, deaf }))
}

/// A model in files, whose last parameter is its head.
fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/qwen3")
}

fn load(device: &Device) -> Result<Model> {
    Model::load(&folder(), device, Precision::of(Dtype::F32))
}

/// The model on a device, every weight copied there before anything is run.
fn in_order() -> Model {
    on(&Device::simulated(), &load(&Device::cpu()).unwrap())
}

pub(super) fn answers(model: &Model) -> Result<Vec<Generated>> {
    let options = Options {
        latents: 2,
        soft: None,
        after_latents: vec![3],
        law: Law::PLAIN,
        max_new_tokens: 4,
        stop: Vec::new(),
        seed: 5,
    };
    let prompts = [vec![5, 6, 7], vec![9]];
    generate(model, &prompts, &options, |_, _| ControlFlow::Continue(())).map(|(answers, _)| answers)
}

/// Logits of a hidden state, asked for as soon as the model is loaded.
fn logits(device: &Device) -> Result<Vec<f32>> {
    let hidden: Vec<f32> = (0..24).map(|n| (n as f32 - 11.5) / 8.0).collect();
    let hidden = Tensor::from_host(device, [1, 24], &hidden)?;
    let mut out = Tensor::zeros(device, [1, 61], Dtype::F32)?;
    let model = load(device)?;
    model.logits(hidden.view(), out.view_mut())?;
    out.download()
}

#[test]
fn weights_and_tokens_are_the_same_in_any_order_of_the_streams() {
    let expected = answers(&in_order()).unwrap();
    for schedule in 0..ORDERS {
        let device = device(schedule, None);
        let model = load(&device).unwrap();
        assert_eq!(answers(&model).unwrap(), expected, "order {schedule}");
        drop(model);
        assert!(device.close().unwrap().is_empty(), "order {schedule}");
    }
}

#[test]
fn a_weight_that_nobody_waits_for_is_noticed() {
    let expected = logits(&Device::simulated()).unwrap();
    for schedule in 0..ORDERS {
        assert_eq!(logits(&device(schedule, None)).unwrap(), expected, "order {schedule}");
        let device = device(schedule, Some(Stream::Compute));
        let found = logits(&device).map(|found| found == expected);
        expect_report(schedule, &device, found);
    }
}

#[test]
fn a_token_that_nobody_waits_for_is_noticed() {
    let expected = answers(&in_order()).unwrap();
    for schedule in 0..ORDERS {
        let device = device(schedule, Some(Stream::Copy));
        let model = on(&device, &load(&Device::cpu()).unwrap());
        expect_report(schedule, &device, answers(&model).map(|found| found == expected));
    }
}

/// Fails unless the checker says that an event is missing. What still waits in a stream when the results are there (a
/// weight that arrives behind its use) is looked at when it runs: at the latest when somebody waits for everything.
fn expect_report(schedule: u64, device: &Device, found: Result<bool>) {
    let Device::Gpu(gpu) = device else { unreachable!("a simulated device is a GPU") };
    match found.and_then(|right| gpu.synchronise().map(|()| right)) {
        Ok(right) => panic!("order {schedule}: no report, and the results are right: {right}"),
        Err(error) => {
            assert!(error.to_string().contains("no event orders the two"), "order {schedule}: {error}")
        }
    }
}

#[test]
fn a_graph_waits_for_what_was_prefetched() {
    for schedule in 0..ORDERS {
        let device = device(schedule, None);
        let Device::Gpu(gpu) = &device else { unreachable!() };
        let (from, to) = (gpu.allocate(256).unwrap(), gpu.allocate(256).unwrap());
        let mut steps = Steps::default();
        for round in 1..6 {
            // The event is dropped: what the graph reads is in no list of arguments.
            drop(gpu.prefetch(from, &[round; 256]).unwrap());
            if round == 1 {
                // The first run is no graph.
                gpu.synchronise().unwrap();
            }
            steps.run(&device, &[1], &mut || gpu.copy(from, to, 256)).unwrap();
            let mut back = [0; 256];
            gpu.download(to, &mut back).unwrap();
            assert_eq!(back, [round; 256], "order {schedule}");
        }
        let count = device.traffic().count();
        assert_eq!([count.steps_eager, count.steps_captured, count.steps_replayed], [1, 1, 3]);
    }
}

#[test]
fn a_prefetch_comes_behind_what_was_asked_for_before() {
    for schedule in 0..ORDERS {
        let device = device(schedule, None);
        let mut tensor = Tensor::from_host(&device, [64], &[1.0f32; 64]).unwrap();
        let mut copies = Vec::new();
        for round in 2..6 {
            // The copy reads the old numbers, and the next round's the new ones.
            let mut copy = Tensor::zeros(&device, [64], Dtype::F32).unwrap();
            latch::ops::elementwise::copy(tensor.view(), copy.view_mut()).unwrap();
            copies.push(copy);
            tensor.prefetch_at(0, &[round as f32; 64]).unwrap();
        }
        let found: Vec<f32> = copies.iter().map(|copy| copy.download::<f32>().unwrap()[63]).collect();
        assert_eq!(found, [1.0, 2.0, 3.0, 4.0], "order {schedule}");
        assert_eq!(tensor.download::<f32>().unwrap(), [5.0; 64], "order {schedule}");
        // Memory that is given back before its contents arrived is not another's.
        let mut lost = Tensor::zeros(&device, [64], Dtype::F32).unwrap();
        lost.prefetch_at(0, &[9.0f32; 64]).unwrap();
        drop(lost);
        let next = Tensor::from_host(&device, [64], &[7.0f32; 64]).unwrap();
        assert_eq!(next.download::<f32>().unwrap(), [7.0; 64], "order {schedule}");
        let too_much = tensor.prefetch_at(1, &[0.0f32; 64]).unwrap_err().to_string();
        assert!(too_much.contains("prefetch") && too_much.contains("1..65"), "{too_much}");
    }
}
