//! Tensors and windows of their rows. Data is reachable inside `ops` alone; everyone else uploads and downloads.

use crate::base::{Dtype, Error, Result, Shape};
use crate::device::{Buffer, Device, Element};
use std::ops::Range;

/// A contiguous array on a device: shape, run-time dtype, opaque memory.
#[derive(Debug)]
pub struct Tensor {
    device: Device,
    shape: Shape,
    buffer: Buffer,
}

/// A run of whole rows of a tensor seen as a matrix ([`Shape::as_matrix`]).
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    tensor: &'a Tensor,
    first: usize,
    rows: usize,
}

/// A run of whole rows that an operation writes to.
#[derive(Debug)]
pub struct ViewMut<'a> {
    tensor: &'a mut Tensor,
    first: usize,
    rows: usize,
}

impl Tensor {
    /// A tensor of zeros.
    pub fn zeros(device: &Device, shape: impl Into<Shape>, dtype: Dtype) -> Result<Tensor> {
        let shape = shape.into();
        Ok(Tensor { device: device.clone(), shape, buffer: device.allocate(dtype, shape.elements())? })
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
        self.expect_dtype("upload", T::DTYPE)?;
        if at + data.len() > self.shape.elements() {
            return Err(Error::shape(
                "upload",
                format!("{at}..{}", at + data.len()),
                format!("inside {}", self.shape),
            ));
        }
        self.buffer.upload(at, data)
    }

    /// All elements, row-major (one download).
    pub fn download<T: Element>(&self) -> Result<Vec<T>> {
        self.view().download()
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
        View { tensor: self, first: 0, rows: self.shape.as_matrix().0 }
    }

    /// All rows, to write.
    pub fn view_mut(&mut self) -> ViewMut<'_> {
        let rows = self.shape.as_matrix().0;
        ViewMut { tensor: self, first: 0, rows }
    }

    /// Rows `range` of the tensor as a matrix. A vector has one row; a window of it needs [`Tensor::zeros`] with
    /// shape `[n, 1]`.
    pub fn rows(&self, range: Range<usize>) -> Result<View<'_>> {
        self.check_rows(&range)?;
        Ok(View { tensor: self, first: range.start, rows: range.len() })
    }

    /// Rows `range`, to write.
    pub fn rows_mut(&mut self, range: Range<usize>) -> Result<ViewMut<'_>> {
        self.check_rows(&range)?;
        Ok(ViewMut { first: range.start, rows: range.len(), tensor: self })
    }

    fn check_rows(&self, range: &Range<usize>) -> Result<()> {
        let rows = self.shape.as_matrix().0;
        if range.start > range.end || range.end > rows {
            return Err(Error::shape(
                "window of rows",
                format!("{range:?}"),
                format!("inside 0..{rows} of {}", self.shape),
            ));
        }
        Ok(())
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
        self.tensor.shape.as_matrix().1
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
        Ok(View { tensor: self.tensor, first: self.first + range.start, rows: range.len() })
    }

    /// The elements, row-major (one download).
    pub fn download<T: Element>(&self) -> Result<Vec<T>> {
        self.tensor.expect_dtype("download", T::DTYPE)?;
        let mut out = vec![T::zeroed(); self.rows * self.cols()];
        self.tensor.buffer.download(self.first * self.cols(), &mut out)?;
        Ok(out)
    }

    /// Fails unless the window is `rows x cols` of `dtype`.
    pub fn expect(&self, what: &str, rows: usize, cols: usize, dtype: Dtype) -> Result<()> {
        expect(what, (self.rows, self.cols(), self.dtype()), (rows, cols, dtype))
    }

    /// The elements as a host slice; only for the CPU arm of an operation.
    pub(in crate::ops) fn slice<T: Element>(&self) -> Result<&'a [T]> {
        let cols = self.cols();
        match T::host(&self.tensor.buffer) {
            Some(data) => Ok(&data[self.first * cols..(self.first + self.rows) * cols]),
            None => Err(Error::dtype("operand", self.dtype(), T::DTYPE)),
        }
    }
}

impl<'a> ViewMut<'a> {
    /// Number of rows.
    pub fn count(&self) -> usize {
        self.rows
    }

    /// Elements of a row.
    pub fn cols(&self) -> usize {
        self.tensor.shape.as_matrix().1
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
        View { tensor: self.tensor, first: self.first, rows: self.rows }
    }

    /// The same rows again, for a shorter time.
    pub fn reborrow(&mut self) -> ViewMut<'_> {
        ViewMut { tensor: self.tensor, first: self.first, rows: self.rows }
    }

    /// Fails unless the window is `rows x cols` of `dtype`.
    pub fn expect(&self, what: &str, rows: usize, cols: usize, dtype: Dtype) -> Result<()> {
        expect(what, (self.rows, self.cols(), self.dtype()), (rows, cols, dtype))
    }

    /// The elements as a host slice; only for the CPU arm of an operation.
    pub(in crate::ops) fn slice<T: Element>(&mut self) -> Result<&mut [T]> {
        let (cols, dtype) = (self.cols(), self.dtype());
        match T::host_mut(&mut self.tensor.buffer) {
            Some(data) => Ok(&mut data[self.first * cols..(self.first + self.rows) * cols]),
            None => Err(Error::dtype("operand", dtype, T::DTYPE)),
        }
    }
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
