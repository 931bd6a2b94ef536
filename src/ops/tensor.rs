//! Tensors and windows of their rows. Data is reachable inside `ops` alone; everyone else uploads and downloads.

use super::reading_order::ReadingOrder;
use crate::base::dtype::bf16_of_f64;
use crate::base::{Dtype, Error, Result, Shape};
use crate::cpu::elementwise;
use crate::device::{Argument, Buffer, Device, Download, Element};
use std::marker::PhantomData;
use std::ops::Range;

/// A contiguous array on a device: shape, run-time dtype, opaque memory.
#[derive(Debug)]
pub struct Tensor {
    device: Device,
    shape: Shape,
    buffer: Buffer,
    reading_order: ReadingOrder,
}

/// A run of whole rows of a tensor seen as a matrix ([`Shape::as_matrix`]).
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    tensor: &'a Tensor,
    /// First element.
    offset: usize,
    rows: usize,
    cols: usize,
}

/// A run of whole rows that an operation writes to.
#[derive(Debug)]
pub struct ViewMut<'a> {
    tensor: &'a mut Tensor,
    /// First element.
    offset: usize,
    rows: usize,
    cols: usize,
}

impl Tensor {
    /// A tensor of zeros.
    pub fn zeros(device: &Device, shape: impl Into<Shape>, dtype: Dtype) -> Result<Tensor> {
        let shape = shape.into();
        let buffer = device.allocate(dtype, shape.elements())?;
        Ok(Tensor { device: device.clone(), shape, buffer, reading_order: ReadingOrder::default() })
    }

    /// A tensor with the host's `data`, row-major (one upload).
    pub fn from_host<T: Element>(device: &Device, shape: impl Into<Shape>, data: &[T]) -> Result<Tensor> {
        let mut tensor = Tensor::zeros(device, shape, T::DTYPE)?;
        tensor.upload(data)?;
        Ok(tensor)
    }

    /// Replaces all elements by the host's `data` (one upload).
    pub fn upload<T: Element>(&mut self, data: &[T]) -> Result<()> {
        if data.len() != self.shape.elements() {
            return Err(Error::shape(
                "upload",
                data.len(),
                format!("{} elements of {}", self.shape.elements(), self.shape),
            ));
        }
        self.upload_at(0, data)
    }

    /// Replaces the elements from `at` on by the host's `data` (one upload).
    pub fn upload_at<T: Element>(&mut self, at: usize, data: &[T]) -> Result<()> {
        self.expect_room("upload", at, data)?;
        self.buffer_mut().upload(at, data)
    }

    /// The same as [`Tensor::upload_at`], on a GPU beside the computation that was asked for before and will be asked for:
    /// the operation that uses this tensor next waits for it.
    ///
    /// # Errors
    /// As [`Tensor::upload_at`].
    pub fn prefetch_at<T: Element>(&mut self, at: usize, data: &[T]) -> Result<()> {
        self.expect_room("prefetch", at, data)?;
        self.buffer_mut().prefetch(at, data)
    }

    fn expect_room<T: Element>(&self, what: &str, at: usize, data: &[T]) -> Result<()> {
        self.expect_dtype(what, T::DTYPE)?;
        match at + data.len() > self.shape.elements() {
            false => Ok(()),
            true => Err(Error::shape(
                what,
                format!("{at}..{}", at + data.len()),
                format!("inside {}", self.shape),
            )),
        }
    }

    /// Replaces the elements of a float tensor from `at` on by numbers, rounded to its dtype (one upload).
    ///
    /// # Errors
    /// As [`Tensor::upload_at`].
    pub fn upload_numbers(&mut self, at: usize, numbers: &[f64]) -> Result<()> {
        match self.dtype() {
            Dtype::F64 => self.upload_at(at, numbers),
            Dtype::Bf16 => self.upload_at(at, &numbers.iter().map(|&n| bf16_of_f64(n)).collect::<Vec<_>>()),
            _ => self.upload_at(at, &numbers.iter().map(|&n| n as f32).collect::<Vec<_>>()),
        }
    }

    /// All elements, row-major (one download).
    pub fn download<T: Element>(&self) -> Result<Vec<T>> {
        self.view().download()
    }

    /// Sets all elements to zero, on the device.
    pub fn clear(&mut self) -> Result<()> {
        match (&self.device, self.dtype()) {
            (Device::Cpu(_), Dtype::F32) => elementwise::clear(self.view_mut().slice::<f32>()?),
            (Device::Cpu(_), Dtype::F64) => elementwise::clear(self.view_mut().slice::<f64>()?),
            _ => self.buffer_mut().clear()?,
        }
        Ok(())
    }

    /// The memory, to be changed: the one way to it.
    fn buffer_mut(&mut self) -> &mut Buffer {
        self.reading_order.outdate();
        &mut self.buffer
    }

    /// The copy for products of few rows; only for the CPU arm of an operation.
    pub(in crate::ops) fn reading_order(&self) -> &ReadingOrder {
        &self.reading_order
    }

    /// The shape.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The element type.
    pub fn dtype(&self) -> Dtype {
        self.buffer.dtype()
    }

    /// The device that holds it.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Bytes of memory held.
    pub fn bytes(&self) -> usize {
        self.shape.elements() * self.dtype().size()
    }

    /// All rows.
    pub fn view(&self) -> View<'_> {
        let (rows, cols) = self.shape.as_matrix();
        View { tensor: self, offset: 0, rows, cols }
    }

    /// All rows, to write.
    pub fn view_mut(&mut self) -> ViewMut<'_> {
        let (rows, cols) = self.shape.as_matrix();
        ViewMut { tensor: self, offset: 0, rows, cols }
    }

    /// Rows `range` of the tensor as a matrix. A vector has one row; a window of it needs [`Tensor::zeros`] with
    /// shape `[n, 1]`.
    pub fn rows(&self, range: Range<usize>) -> Result<View<'_>> {
        let cols = self.check_rows(&range)?;
        Ok(View { tensor: self, offset: range.start * cols, rows: range.len(), cols })
    }

    /// Rows `range`, to write.
    pub fn rows_mut(&mut self, range: Range<usize>) -> Result<ViewMut<'_>> {
        let cols = self.check_rows(&range)?;
        Ok(ViewMut { offset: range.start * cols, rows: range.len(), cols, tensor: self })
    }

    /// The first `rows * cols` elements as a matrix: a workspace serves matrices of several widths.
    pub(in crate::ops) fn matrix(&self, rows: usize, cols: usize) -> Result<View<'_>> {
        self.check_matrix(rows, cols)?;
        Ok(View { tensor: self, offset: 0, rows, cols })
    }

    /// The same, to write.
    pub(in crate::ops) fn matrix_mut(&mut self, rows: usize, cols: usize) -> Result<ViewMut<'_>> {
        self.check_matrix(rows, cols)?;
        Ok(ViewMut { tensor: self, offset: 0, rows, cols })
    }

    fn check_matrix(&self, rows: usize, cols: usize) -> Result<()> {
        if rows * cols > self.shape.elements() {
            return Err(Error::shape(
                "matrix in a workspace",
                format!("{rows} rows of {cols}"),
                format!("at most {} elements", self.shape.elements()),
            ));
        }
        Ok(())
    }

    /// The number of columns, when `range` lies inside the rows.
    fn check_rows(&self, range: &Range<usize>) -> Result<usize> {
        let (rows, cols) = self.shape.as_matrix();
        if range.start > range.end || range.end > rows {
            return Err(Error::shape(
                "window of rows",
                format!("{range:?}"),
                format!("inside 0..{rows} of {}", self.shape),
            ));
        }
        Ok(cols)
    }

    /// The address of the first element as a number, to divide the memory; only for the GPU arm of an operation.
    pub(in crate::ops) fn address(&self) -> Result<u64> {
        address(&self.buffer, 0)
    }

    /// Fails unless the dtype is `expected`.
    pub fn expect_dtype(&self, what: &str, expected: Dtype) -> Result<()> {
        if self.dtype() != expected {
            return Err(Error::dtype(what, self.dtype(), expected));
        }
        Ok(())
    }

    /// Fails unless the shape is `expected`.
    pub fn expect_shape(&self, what: &str, expected: impl Into<Shape>) -> Result<()> {
        let expected = expected.into();
        if self.shape != expected {
            return Err(Error::shape(what, self.shape, expected));
        }
        Ok(())
    }
}

impl<'a> View<'a> {
    /// Number of rows.
    pub fn count(&self) -> usize {
        self.rows
    }

    /// Elements of a row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The element type.
    pub fn dtype(&self) -> Dtype {
        self.tensor.dtype()
    }

    /// The device that holds it.
    pub fn device(&self) -> &'a Device {
        &self.tensor.device
    }

    /// A run of rows inside this one; `range` counts from this window's first row.
    pub fn rows(&self, range: Range<usize>) -> Result<View<'a>> {
        if range.start > range.end || range.end > self.rows {
            return Err(Error::shape(
                "window of rows",
                format!("{range:?}"),
                format!("inside 0..{}", self.rows),
            ));
        }
        Ok(View { offset: self.offset + range.start * self.cols, rows: range.len(), ..*self })
    }

    /// The same elements with every row cut into `parts` rows: `[n, parts * c]` as `[n * parts, c]`.
    pub fn split(&self, parts: usize) -> Result<View<'a>> {
        let cols = split_cols(self.cols, parts)?;
        Ok(View { rows: self.rows * parts, cols, ..*self })
    }

    /// The elements of a view of floats, row-major and exact (one download).
    ///
    /// # Errors
    /// As [`View::download`].
    pub fn numbers(&self) -> Result<Vec<f64>> {
        match self.dtype() {
            Dtype::F64 => self.download::<f64>(),
            Dtype::Bf16 => Ok(self.download::<half::bf16>()?.into_iter().map(f64::from).collect()),
            _ => Ok(self.download::<f32>()?.into_iter().map(f64::from).collect()),
        }
    }

    /// The elements, row-major (one download).
    pub fn download<T: Element>(&self) -> Result<Vec<T>> {
        self.tensor.expect_dtype("download", T::DTYPE)?;
        let mut out = vec![T::zeroed(); self.rows * self.cols];
        self.tensor.buffer.download(self.offset, &mut out)?;
        Ok(out)
    }

    /// Begins the download of the elements beside the computation; they stay as they are until it is received.
    ///
    /// # Errors
    /// As [`View::download`].
    pub fn fetch<T: Element>(self) -> Result<Fetch<'a, T>> {
        self.tensor.expect_dtype("fetch", T::DTYPE)?;
        let download = self.tensor.buffer.fetch(self.offset, self.rows * self.cols)?;
        Ok(Fetch { view: self, download, elements: PhantomData })
    }

    /// Fails unless the window is `rows x cols` of `dtype`.
    pub fn expect(&self, what: &str, rows: usize, cols: usize, dtype: Dtype) -> Result<()> {
        expect(what, (self.rows, self.cols(), self.dtype()), (rows, cols, dtype))
    }

    /// The elements as a host slice; only for the CPU arm of an operation.
    pub(in crate::ops) fn slice<T: Element>(&self) -> Result<&'a [T]> {
        match T::host(&self.tensor.buffer) {
            Some(data) => Ok(&data[self.offset..self.offset + self.rows * self.cols]),
            None => Err(Error::dtype("operand", self.dtype(), T::DTYPE)),
        }
    }

    /// The address of the first element; only for the GPU arm of an operation.
    pub(in crate::ops) fn address(&self) -> Result<Argument> {
        Ok(Argument::Address(address(&self.tensor.buffer, self.offset)?))
    }
}

impl<'a> ViewMut<'a> {
    /// Number of rows.
    pub fn count(&self) -> usize {
        self.rows
    }

    /// Elements of a row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The element type.
    pub fn dtype(&self) -> Dtype {
        self.tensor.dtype()
    }

    /// The device that holds it.
    pub fn device(&self) -> &Device {
        &self.tensor.device
    }

    /// The same rows, to read.
    pub fn as_view(&self) -> View<'_> {
        View { tensor: self.tensor, offset: self.offset, rows: self.rows, cols: self.cols }
    }

    /// A run of rows inside this one; `range` counts from this window's first row.
    pub fn rows(self, range: Range<usize>) -> Result<ViewMut<'a>> {
        if range.start > range.end || range.end > self.rows {
            return Err(Error::shape(
                "window of rows",
                format!("{range:?}"),
                format!("inside 0..{}", self.rows),
            ));
        }
        Ok(ViewMut { offset: self.offset + range.start * self.cols, rows: range.len(), ..self })
    }

    /// The same rows again, for a shorter time.
    pub fn reborrow(&mut self) -> ViewMut<'_> {
        ViewMut { tensor: self.tensor, offset: self.offset, rows: self.rows, cols: self.cols }
    }

    /// The same elements with every row cut into `parts` rows: `[n, parts * c]` as `[n * parts, c]`.
    pub fn split(self, parts: usize) -> Result<ViewMut<'a>> {
        let cols = split_cols(self.cols, parts)?;
        Ok(ViewMut { rows: self.rows * parts, cols, ..self })
    }

    /// Fails unless the window is `rows x cols` of `dtype`.
    pub fn expect(&self, what: &str, rows: usize, cols: usize, dtype: Dtype) -> Result<()> {
        expect(what, (self.rows, self.cols(), self.dtype()), (rows, cols, dtype))
    }

    /// The elements as a host slice; only for the CPU arm of an operation.
    pub(in crate::ops) fn slice<T: Element>(&mut self) -> Result<&mut [T]> {
        let (dtype, elements) = (self.dtype(), self.rows * self.cols);
        match T::host_mut(self.tensor.buffer_mut()) {
            Some(data) => Ok(&mut data[self.offset..self.offset + elements]),
            None => Err(Error::dtype("operand", dtype, T::DTYPE)),
        }
    }

    /// The address of the first element; only for the GPU arm of an operation.
    pub(in crate::ops) fn address(&self) -> Result<Argument> {
        Ok(Argument::Address(address(&self.tensor.buffer, self.offset)?))
    }
}

/// A download under way ([`View::fetch`]).
#[must_use = "the elements arrive when it is received"]
#[derive(Debug)]
pub struct Fetch<'a, T> {
    view: View<'a>,
    download: Option<Download>,
    elements: PhantomData<T>,
}

impl<T: Element> Fetch<'_, T> {
    /// Waits for the elements, row-major (one download).
    ///
    /// # Errors
    /// A device that failed.
    pub fn receive(self) -> Result<Vec<T>> {
        let mut out = vec![T::zeroed(); self.view.rows * self.view.cols];
        self.view.tensor.buffer.receive(self.download, self.view.offset, &mut out)?;
        Ok(out)
    }
}

/// Where element `at` lies on a GPU, for an operation that is asked for next.
fn address(buffer: &Buffer, at: usize) -> Result<u64> {
    buffer.settle()?;
    match buffer.address(at) {
        Some(address) => Ok(address),
        None => Err(Error::device(
            "an operand lies in the host's memory, the others on a GPU",
            "keep all operands of an operation on one device",
        )),
    }
}

fn split_cols(cols: usize, parts: usize) -> Result<usize> {
    if parts == 0 || !cols.is_multiple_of(parts) {
        return Err(Error::shape("split of rows", format!("{cols} columns in {parts} parts"), "equal parts"));
    }
    Ok(cols / parts)
}

fn expect(what: &str, found: (usize, usize, Dtype), expected: (usize, usize, Dtype)) -> Result<()> {
    if (found.0, found.1) != (expected.0, expected.1) {
        return Err(Error::shape(
            what,
            format!("{} rows of {}", found.0, found.1),
            format!("{} rows of {}", expected.0, expected.1),
        ));
    }
    if found.2 != expected.2 {
        return Err(Error::dtype(what, found.2, expected.2));
    }
    Ok(())
}

/// Runs `$body` with the type alias `$type` set to f32 or f64, as `$dtype` says.
macro_rules! float_dispatch {
    ($what:expr, $dtype:expr, $type:ident => $body:expr) => {
        match $dtype {
            $crate::base::Dtype::F32 => {
                type $type = f32;
                $body
            }
            $crate::base::Dtype::F64 => {
                type $type = f64;
                $body
            }
            other => return Err($crate::base::Error::dtype($what, other, "f32 or f64")),
        }
    };
}
pub(in crate::ops) use float_dispatch;
