//! A series of numbers in bounded memory: as many neighbouring values share a bucket as the length demands, and a bucket
//! keeps their lowest, highest and mean.

/// The most buckets a series holds; even, since neighbours merge in pairs.
const CAPACITY: usize = 1024;
/// Values beyond this size are taken as gaps: their sums and differences would leave the range of numbers.
const LARGEST: f64 = 1e300;

/// Neighbouring values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bucket {
    /// Place of the first value.
    pub first: f64,
    /// Place of the last value.
    pub last: f64,
    /// The lowest value; infinite where all are gaps.
    pub low: f64,
    /// The highest.
    pub high: f64,
    /// Mean of the values that are no gaps.
    pub mean: f64,
    /// Values that are no gaps.
    pub count: u64,
    /// Values that are: not finite.
    pub gaps: u64,
}

impl Bucket {
    fn of(x: f64, value: Option<f64>) -> Bucket {
        match value.filter(|value| value.abs() <= LARGEST) {
            Some(y) => Bucket { first: x, last: x, low: y, high: y, mean: y, count: 1, gaps: 0 },
            None => Bucket {
                first: x,
                last: x,
                low: f64::INFINITY,
                high: f64::NEG_INFINITY,
                mean: 0.0,
                count: 0,
                gaps: 1,
            },
        }
    }

    fn with(&self, next: &Bucket) -> Bucket {
        let count = self.count + next.count;
        let share = |bucket: &Bucket| bucket.mean * (bucket.count as f64 / count.max(1) as f64);
        Bucket {
            first: self.first,
            last: next.last,
            low: self.low.min(next.low),
            high: self.high.max(next.high),
            mean: share(self) + share(next),
            count,
            gaps: self.gaps + next.gaps,
        }
    }

    /// Where it is drawn.
    pub fn x(&self) -> f64 {
        self.first + (self.last - self.first) / 2.0
    }
}

/// Values in the order of their places.
#[derive(Clone, Debug, Default)]
pub struct Series {
    buckets: Vec<Bucket>,
    /// Values a bucket; the last one may have fewer.
    stride: u64,
    in_last: u64,
}

impl Series {
    /// Adds a value; none where it is not finite.
    pub fn push(&mut self, x: f64, value: Option<f64>) {
        let one = Bucket::of(x, value);
        self.stride = self.stride.max(1);
        match self.buckets.last_mut() {
            Some(last) if self.in_last < self.stride => {
                *last = last.with(&one);
                self.in_last += 1;
            }
            _ => {
                if self.buckets.len() == CAPACITY {
                    self.buckets = merged(&self.buckets, 2);
                    self.stride *= 2;
                }
                self.buckets.push(one);
                self.in_last = 1;
            }
        }
    }

    /// Values, gaps included.
    pub fn values(&self) -> u64 {
        self.buckets.iter().map(|bucket| bucket.count + bucket.gaps).sum()
    }

    /// How many are gaps.
    pub fn gaps(&self) -> u64 {
        self.buckets.iter().map(|bucket| bucket.gaps).sum()
    }

    /// All of it as one bucket, where there is a value that is no gap.
    pub fn whole(&self) -> Option<Bucket> {
        let first = *self.buckets.first()?;
        let whole = self.buckets[1..].iter().fold(first, |whole, next| whole.with(next));
        (whole.count > 0).then_some(whole)
    }

    /// Means over the first and the last tenth.
    pub fn ends(&self) -> Option<(f64, f64)> {
        let tenth = self.buckets.len().div_ceil(10);
        let of = |buckets: &[Bucket]| {
            let whole = Series { buckets: buckets.to_vec(), ..Series::default() }.whole()?;
            Some(whole.mean)
        };
        Some((of(&self.buckets[..tenth])?, of(&self.buckets[self.buckets.len() - tenth..])?))
    }

    /// At most `most` buckets of as many neighbours each.
    pub fn reduced(&self, most: usize) -> Vec<Bucket> {
        merged(&self.buckets, self.buckets.len().div_ceil(most.max(1)).max(1))
    }

    /// Buckets that are held.
    pub fn held(&self) -> usize {
        self.buckets.len()
    }
}

fn merged(buckets: &[Bucket], at_once: usize) -> Vec<Bucket> {
    let chunks = buckets.chunks(at_once);
    chunks.map(|chunk| chunk[1..].iter().fold(chunk[0], |whole, next| whole.with(next))).collect()
}

/// At each bucket the mean of the values of it and of those before, `window` buckets in all.
pub fn running_mean(buckets: &[Bucket], window: usize) -> Vec<Option<f64>> {
    (0..buckets.len())
        .map(|at| {
            let of = &buckets[(at + 1).saturating_sub(window)..=at];
            let count: u64 = of.iter().map(|bucket| bucket.count).sum();
            let share = |bucket: &Bucket| bucket.mean * (bucket.count as f64 / count as f64);
            (count > 0 && buckets[at].count > 0).then(|| of.iter().map(share).sum())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_million_values_keep_their_extremes_and_their_mean() {
        let mut series = Series::default();
        for n in 0..1_000_000_u32 {
            let value = if n == 123_456 { 9.0 } else { f64::from(n % 2) };
            series.push(f64::from(n), if n == 7 { None } else { Some(value) });
        }
        assert!(series.held() <= CAPACITY);
        assert_eq!((series.values(), series.gaps()), (1_000_000, 1));
        let whole = series.whole().unwrap();
        assert_eq!((whole.first, whole.last, whole.low, whole.high), (0.0, 999_999.0, 0.0, 9.0));
        assert!((whole.mean - 0.5).abs() < 1e-4, "{}", whole.mean);
        let peak: Vec<Bucket> = series.reduced(100).into_iter().filter(|bucket| bucket.high == 9.0).collect();
        assert_eq!(peak.len(), 1);
        assert!(peak[0].first <= 123_456.0 && 123_456.0 <= peak[0].last);
        assert!(series.reduced(100).len() <= 100);
    }

    #[test]
    fn few_values_stay_as_they_are() {
        let mut series = Series::default();
        let values = [Some(1.0), None, Some(f64::NAN), Some(1e308), Some(-3.0)];
        for (n, value) in values.into_iter().enumerate() {
            series.push(n as f64, value);
        }
        let buckets = series.reduced(1000);
        assert_eq!(buckets.iter().map(|b| b.gaps).collect::<Vec<_>>(), [0, 1, 1, 1, 0]);
        assert_eq!((buckets[0].mean, buckets[4].low, buckets[4].x()), (1.0, -3.0, 4.0));
        assert_eq!(running_mean(&buckets, 5), [Some(1.0), None, None, None, Some(-1.0)]);
        assert_eq!(running_mean(&buckets, 1)[4], Some(-3.0));
    }
}
