//! Dropout bitmaps: one Bernoulli vector a site, drawn once, read at every step, forward and backward.
//! Kernels: cuda/mask.cu. CPU: cpu/mask.rs. Parity: tests/parity/mask.rs.
//!
//! An *instance* is one row of the set: all sites of one rollout in shared mode, of one rollout at one step or
//! position in the per-step and per-position modes. Operands say for each of their rows which instance masks it.

use super::index::expect_indices;
use super::launch::{ABSENT, arguments, blocks, by_dtype, kernels, size};
use super::row_blocks::RowBlocks;
use super::{Tensor, View, ViewMut, float_dispatch};
use crate::base::rng::StreamKey;
use crate::base::{Dtype, Error, Result};
use crate::cpu;
use crate::device::{Arena, Argument, Device, Grid, Identity};

kernels!("mask":
    FILL = "mask_fill",
    APPLY_F32 = "mask_apply_f32",
    APPLY_BF16 = "mask_apply_bf16",
);

/// Threads of a block of [`FILL`]; `__launch_bounds__` of the kernel. Each draws a word.
const BLOCK: u32 = 256;

/// Where in a layer a mask sits. The numbers are part of the frozen random number layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum SiteKind {
    /// Input embedding, the fed-back latent included; once a model.
    Emb = 0,
    /// Output of the attention's projection, before the residual sum.
    AttnOut = 1,
    /// Output of the MLP's projection, before the residual sum.
    MlpOut = 2,
    /// Hidden units of the MLP after their non-linearity.
    MlpHid = 3,
    /// The latent alone, where it is fed back; once a model.
    Latent = 4,
}

impl SiteKind {
    /// All kinds, in order of their numbers.
    pub const ALL: [SiteKind; 5] =
        [SiteKind::Emb, SiteKind::AttnOut, SiteKind::MlpOut, SiteKind::MlpHid, SiteKind::Latent];

    /// The name in files and on command lines.
    pub fn name(self) -> &'static str {
        match self {
            SiteKind::Emb => "emb",
            SiteKind::AttnOut => "attn_out",
            SiteKind::MlpOut => "mlp_out",
            SiteKind::MlpHid => "mlp_hid",
            SiteKind::Latent => "latent",
        }
    }

    /// The kind of that name.
    pub fn from_name(name: &str) -> Option<SiteKind> {
        SiteKind::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Whether the site exists once, at layer 0, instead of in every layer.
    fn once(self) -> bool {
        matches!(self, SiteKind::Emb | SiteKind::Latent)
    }
}

/// One place with a bitmap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Site {
    /// Layer; 0 for sites that exist once.
    pub layer: usize,
    /// Which place of the layer.
    pub kind: SiteKind,
    /// Elements masked.
    pub width: usize,
    /// First 32-bit word inside an instance.
    offset: usize,
}

impl Site {
    /// `layer * 8 + kind`: the coordinate of the random number layout.
    pub fn number(&self) -> u32 {
        (self.layer * 8) as u32 + self.kind as u32
    }
}

/// Which sites exist, with their widths; every site starts at a word of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sites {
    list: Vec<Site>,
    words: usize,
}

impl Sites {
    /// The sites of `kinds` in a model of `layers` layers.
    pub fn new(d_model: usize, mlp_hidden: usize, layers: usize, kinds: &[SiteKind]) -> Sites {
        let mut sites = Sites::default();
        for layer in 0..layers.max(1) {
            for kind in SiteKind::ALL.into_iter().filter(|kind| kinds.contains(kind)) {
                if (kind.once() && layer > 0) || (!kind.once() && layer >= layers) {
                    continue;
                }
                let width = if kind == SiteKind::MlpHid { mlp_hidden } else { d_model };
                sites.list.push(Site { layer, kind, width, offset: sites.words });
                sites.words += width.div_ceil(32);
            }
        }
        sites
    }

    /// The same without the sites that `keep` refuses.
    pub fn retain(self, keep: impl Fn(&Site) -> bool) -> Sites {
        let mut sites = Sites::default();
        for site in self.list.into_iter().filter(keep) {
            sites.list.push(Site { offset: sites.words, ..site });
            sites.words += site.width.div_ceil(32);
        }
        sites
    }

    /// All sites, in order of their words.
    pub fn iter(&self) -> impl Iterator<Item = &Site> {
        self.list.iter()
    }

    /// 32-bit words of one instance.
    pub fn words(&self) -> usize {
        self.words
    }

    /// The site of `kind` in `layer` (0 for sites that exist once), if it exists.
    pub fn find(&self, kind: SiteKind, layer: usize) -> Option<&Site> {
        self.list.iter().find(|site| site.kind == kind && site.layer == layer)
    }
}

/// Where an instance's bits are drawn: its stream, and the step and attempt of the counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaskKey {
    /// The stream of a rollout with purpose `Mask`.
    pub stream: StreamKey,
    /// 0 in shared mode, else the step or position.
    pub step: u32,
    /// Counts refills of one prompt in one update.
    pub attempt: u32,
}

/// The bitmaps of all instances in device memory.
#[derive(Debug)]
pub struct MaskSet {
    /// `[instances, words]`; a set bit means kept.
    bits: Tensor,
    sites: Sites,
    p: f64,
    /// Whether there is anything to apply.
    active: bool,
    identity: Identity,
    /// Present in sets that are drawn, absent where the bits were given.
    drawing: Option<Drawing>,
}

/// What drawing reads on the device.
#[derive(Debug)]
struct Drawing {
    keys: Tensor,
    table: Tensor,
}

impl MaskSet {
    /// Draws one instance a key. Element i of site u is dropped iff
    /// `word i of Philox(stream, (u, step, i/4, attempt)) < floor(p * 2^32)`; kept elements are scaled by
    /// `1/(1-p)`. With `p` = 0 nothing is ever applied, which leaves the same bits as no mask at all.
    ///
    /// # Errors
    /// `p` outside [0, 1).
    pub fn fill(device: &Device, sites: Sites, p: f64, keys: &[MaskKey]) -> Result<MaskSet> {
        let mut set = MaskSet::reserve(device, sites, p, keys.len())?;
        set.draw(keys)?;
        Ok(set)
    }

    /// Room for `instances` bitmaps, to be drawn by [`MaskSet::draw`].
    ///
    /// # Errors
    /// `p` outside [0, 1).
    pub fn reserve(device: &Device, sites: Sites, p: f64, instances: usize) -> Result<MaskSet> {
        let _arena = Arena::Masks.enter();
        let mut set = MaskSet::zeros(device, sites, p, instances, p > 0.0)?;
        let table: Vec<u32> =
            set.sites.iter().flat_map(|s| [s.number(), s.width as u32, s.offset as u32]).collect();
        set.drawing = Some(Drawing {
            keys: Tensor::zeros(device, [instances, cpu::mask::KEY_WORDS], Dtype::U32)?,
            table: Tensor::from_host(device, [set.sites.list.len(), cpu::mask::SITE_WORDS], &table)?,
        });
        Ok(set)
    }

    /// Draws the first `keys.len()` instances anew (one upload); the law is that of [`MaskSet::fill`].
    ///
    /// # Errors
    /// More keys than instances, or a set of given bits.
    pub fn draw(&mut self, keys: &[MaskKey]) -> Result<()> {
        let instances = self.instances();
        let Some(drawing) = self.drawing.as_mut().filter(|_| keys.len() <= instances) else {
            return Err(Error::shape(
                "mask keys",
                keys.len(),
                format!("at most {instances}, of a reserved set"),
            ));
        };
        if !self.active || self.sites.words == 0 || keys.is_empty() {
            return Ok(());
        }
        let words: Vec<u32> =
            keys.iter().flat_map(|k| [k.stream.0[0], k.stream.0[1], k.step, k.attempt]).collect();
        drawing.keys.upload_at(0, &words)?;
        // p < 1, so that the floor fits 32 bits.
        let threshold = (self.p * 4_294_967_296.0) as u32;
        match self.bits.device().clone() {
            Device::Cpu(_) => {
                let keys = drawing.keys.rows(0..keys.len())?;
                let mut bits = self.bits.rows_mut(0..keys.count())?;
                let table = drawing.table.view();
                cpu::mask::fill(keys.slice()?, table.slice()?, threshold, self.sites.words, bits.slice()?);
            }
            Device::Gpu(gpu) => {
                let across = blocks("mask words", keys.len() * self.sites.words, BLOCK as usize)?;
                let sites = size("mask sites", self.sites.list.len())?;
                let shared_bytes = drawing.table.bytes() as u32;
                let grid = Grid { shared_bytes, ..Grid::linear(across, BLOCK) };
                let (instances, stride) = (keys.len() as u32, size("mask words", self.sites.words)?);
                let (keys, table) = (drawing.keys.view().address()?, drawing.table.view().address()?);
                let bits = self.bits.view_mut().address()?;
                let arguments = arguments![keys, table, sites, threshold, instances, stride, bits];
                gpu.launch(&FILL, grid, &arguments)?;
            }
        }
        Ok(())
    }

    /// A set with given bits: `keep(site)` holds `instances x width` bytes, 0 = dropped, anything else = kept.
    /// It is applied even where `p` is 0 (then kept elements keep their value).
    ///
    /// # Errors
    /// `p` outside [0, 1); a site without bytes or with the wrong number of them.
    pub fn from_keep<'k>(
        device: &Device,
        sites: Sites,
        p: f64,
        instances: usize,
        keep: impl Fn(&Site) -> Option<&'k [u8]>,
    ) -> Result<MaskSet> {
        let mut bits = vec![0_u32; instances * sites.words];
        for site in sites.iter() {
            let what = || format!("mask of site {:?} in layer {}", site.kind, site.layer);
            let expected = || format!("{instances} x {} bytes", site.width);
            let bytes = keep(site).ok_or_else(|| Error::shape(what(), "nothing", expected()))?;
            if bytes.len() != instances * site.width {
                return Err(Error::shape(what(), format!("{} bytes", bytes.len()), expected()));
            }
            for (at, _) in bytes.iter().enumerate().filter(|(_, byte)| **byte != 0) {
                let (instance, i) = (at / site.width, at % site.width);
                bits[instance * sites.words + site.offset + i / 32] |= 1 << (i % 32);
            }
        }
        let mut set = MaskSet::zeros(device, sites, p, instances, true)?;
        set.bits.upload(&bits)?;
        Ok(set)
    }

    fn zeros(device: &Device, sites: Sites, p: f64, instances: usize, active: bool) -> Result<MaskSet> {
        check_p(p)?;
        let _arena = Arena::Masks.enter();
        let bits = Tensor::zeros(device, [instances, sites.words], Dtype::U32)?;
        Ok(MaskSet { bits, sites, p, active, identity: Identity::fresh(), drawing: None })
    }

    /// One site's bits for rows whose instances are `instance` (I32 `[N, 1]`, -1 = not masked); `None` where
    /// the site does not exist or nothing can be dropped.
    pub fn at<'a>(&'a self, kind: SiteKind, layer: usize, instance: View<'a>) -> Option<MaskAt<'a>> {
        let site = self.sites.find(kind, layer)?;
        self.active.then(|| MaskAt {
            bits: &self.bits,
            offset: site.offset,
            width: site.width,
            scale: self.scale(),
            instance,
        })
    }

    /// Turns one bit over: what a test does to see that replay notices (one download, one upload).
    ///
    /// # Errors
    /// An instance, a site or an element that does not exist.
    pub fn flip(&mut self, instance: usize, kind: SiteKind, layer: usize, element: usize) -> Result<()> {
        let site = self.sites.find(kind, layer).filter(|site| element < site.width);
        let Some(site) = site.filter(|_| instance < self.instances()) else {
            return Err(Error::shape(
                "mask bit",
                format!("instance {instance}, {} of layer {layer}, element {element}", kind.name()),
                "a bit of the set",
            ));
        };
        let word = instance * self.sites.words + site.offset + element / 32;
        let bits = self.bits.rows(instance..instance + 1)?.download::<u32>()?;
        let flipped = bits[site.offset + element / 32] ^ (1 << (element % 32));
        self.bits.upload_at(word, &[flipped])
    }

    /// The bitmaps, U32 `[instances, words]`; a set bit means kept.
    pub fn bits(&self) -> &Tensor {
        &self.bits
    }

    /// Tells this set from all others, whatever its bits are at the time.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Which sites the set has.
    pub fn sites(&self) -> &Sites {
        &self.sites
    }

    /// Number of instances.
    pub fn instances(&self) -> usize {
        self.bits.shape().as_matrix().0
    }

    /// Probability of being dropped.
    pub fn p(&self) -> f64 {
        self.p
    }

    /// What kept elements are multiplied by: `1/(1-p)`.
    pub fn scale(&self) -> f64 {
        1.0 / (1.0 - self.p)
    }
}

fn check_p(p: f64) -> Result<()> {
    if (0.0..1.0).contains(&p) {
        return Ok(());
    }
    Err(Error::input("mask probability p", format!("found {p}, expected 0 <= p < 1"), "choose p in [0, 1)"))
}

/// What a masked operation needs: one site of a [`MaskSet`] and the instance of each row.
#[derive(Clone, Copy, Debug)]
pub struct MaskAt<'a> {
    bits: &'a Tensor,
    offset: usize,
    width: usize,
    scale: f64,
    instance: View<'a>,
}

impl<'a> MaskAt<'a> {
    /// Fails unless it masks `rows` rows of `width` elements.
    pub(in crate::ops) fn expect(&self, what: &str, rows: usize, width: usize) -> Result<()> {
        if self.width != width {
            return Err(Error::shape(format!("{what} mask"), format!("width {}", self.width), width));
        }
        self.instance.expect(&format!("{what} mask instances"), rows, 1, Dtype::I32)
    }

    /// The form of the GPU kernels: bits, instance of each row, instances, words of an instance, first word of the
    /// site, scale. The caller has checked on the host that every row's instance exists: a kernel does not read
    /// outside the bitmaps and makes such a row NaN.
    pub(in crate::ops) fn arguments(&self) -> Result<[Argument; 6]> {
        let (instances, stride) = self.bits.shape().as_matrix();
        Ok([
            self.bits.view().address()?,
            self.instance.address()?,
            Argument::U32(size("mask instances", instances)?),
            Argument::U32(size("mask words", stride)?),
            Argument::U32(size("mask words", self.offset)?),
            Argument::F32(self.scale as f32),
        ])
    }

    /// The form of the CPU kernels; fails where a row names an instance that does not exist.
    pub(in crate::ops) fn host(&self) -> Result<cpu::mask::Mask<'a>> {
        let (instances, stride) = self.bits.shape().as_matrix();
        let instance = self.instance.slice::<i32>()?;
        expect_indices("mask instances", instance, -1, instances)?;
        let bits = self.bits.view().slice()?;
        Ok(cpu::mask::Mask {
            bits,
            stride,
            offset: self.offset,
            width: self.width,
            scale: self.scale,
            instance,
        })
    }
}

/// [`MaskAt::arguments`] of a mask that may be absent.
pub(in crate::ops) fn mask_arguments(mask: &Option<MaskAt>) -> Result<[Argument; 6]> {
    match mask {
        Some(mask) => mask.arguments(),
        None => {
            Ok([ABSENT, ABSENT, Argument::U32(0), Argument::U32(0), Argument::U32(0), Argument::F32(1.0)])
        }
    }
}

/// Multiplies the rows of `x[N, width]` by their bitmaps in place: `x * scale` where kept, exactly 0 where
/// dropped. Its own backward: apply it to the gradient.
///
/// # Errors
/// Shapes or dtypes that do not fit; an instance that does not exist.
pub fn apply(mut x: ViewMut, mask: MaskAt) -> Result<()> {
    let (rows, cols, dtype) = (x.count(), x.cols(), x.dtype());
    mask.expect("apply", rows, cols)?;
    match x.device() {
        Device::Cpu(_) => float_dispatch!("mask", dtype, T => {
            cpu::mask::apply::<T>(x.slice()?, mask.host()?);
        }),
        Device::Gpu(_) if rows == 0 => {}
        Device::Gpu(gpu) => {
            let kernel = by_dtype("mask", dtype, &APPLY_F32, &APPLY_BF16)?;
            let RowBlocks { grid, each } = RowBlocks::masked("mask rows", rows, cols)?;
            let [bits, instance, instances, stride, offset, scale] = mask.arguments()?;
            let (x, rows, cols) = (x.address()?, rows as u32, size("mask columns", cols)?);
            let arguments = arguments![x, bits, instance, instances, stride, offset, scale, rows, cols, each];
            gpu.launch(kernel, grid, &arguments)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn site_numbers_and_words_are_frozen() {
        let sites = Sites::new(768, 3072, 12, &[SiteKind::MlpOut, SiteKind::AttnOut]);
        assert_eq!(sites.words() * 4, 2304);
        assert_eq!(sites.find(SiteKind::MlpOut, 11).unwrap().number(), 90);
        assert!(sites.find(SiteKind::Emb, 0).is_none());
        let all = Sites::new(33, 65, 2, &SiteKind::ALL);
        let found: Vec<_> = all.iter().map(|s| (s.number(), s.width, s.offset)).collect();
        let expected = [
            (0, 33, 0),
            (1, 33, 2),
            (2, 33, 4),
            (3, 65, 6),
            (4, 33, 9),
            (9, 33, 11),
            (10, 33, 13),
            (11, 65, 15),
        ];
        assert_eq!(found, expected);
        assert_eq!(all.words(), 18);
    }
}
