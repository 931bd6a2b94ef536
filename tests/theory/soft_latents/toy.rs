//! The toy, and the expectations of its reward.

use latch::verify::gradient::normals;

pub const VOCABULARY: usize = 5;
pub const WIDTH: usize = 3;
pub const TAU: f64 = 0.7;
pub const PROMPT: usize = 0;
pub const PARAMETERS: usize = VOCABULARY * WIDTH + WIDTH * WIDTH;
/// Step and end of the grid of log-ratios.
const STEP: f64 = 1.0;
const END: f64 = 14.0;
/// Cells of [`Toy::cells`]; `the_cells_between_changes_are_narrow_enough` measures what they leave.
const CELLS: u32 = 24;

/// Embeddings, then W, row-major.
pub type Parameters = [f64; PARAMETERS];

pub fn parameters() -> Parameters {
    let mut all = [0.0; PARAMETERS];
    let draws = normals("soft latents on a toy", PARAMETERS);
    for (i, (parameter, draw)) in all.iter_mut().zip(draws).enumerate() {
        *parameter = if i < VOCABULARY * WIDTH { 0.9 * draw } else { 0.7 * draw };
    }
    all
}

/// Noise of one soft step: standard Gumbel noise of each kept id, or standard normal noise of each entry of its embedding,
/// and the node's weight.
pub struct Node {
    pub noise: Vec<f64>,
    pub weight: f64,
}

/// The grid of a step that keeps `n` ids; with `sums` the law of sum E as well, otherwise its mean stands for it.
pub fn nodes(n: usize, sums: bool) -> Vec<Node> {
    let points = (2.0 * END / STEP) as usize + 1;
    // Gauss points of Gamma(n): the roots of the second Laguerre polynomial of order n - 1.
    let (n_, root) = (n as f64, (n as f64 + 1.0).sqrt());
    let (low, high) = (n_ + 1.0 - root, n_ + 1.0 + root);
    let upper = (n_ - low) / (high - low);
    let totals = if sums { vec![(low, 1.0 - upper), (high, upper)] } else { vec![(n_, 1.0)] };
    let factorial: f64 = (1..n).map(|i| i as f64).product();
    let mut all = Vec::new();
    for index in 0..points.pow(n as u32 - 1) {
        let ratio = |i: u32| STEP * (index / points.pow(i) % points) as f64 - END;
        // log of s, up to its sum.
        let mut log_s: Vec<f64> = (0..n as u32 - 1).map(ratio).collect();
        log_s.push(0.0);
        let largest = log_s.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum = log_s.iter().map(|l| (l - largest).exp()).sum::<f64>().ln() + largest;
        log_s.iter_mut().for_each(|l| *l -= sum);
        let density = factorial * log_s.iter().sum::<f64>().exp() * STEP.powi(n as i32 - 1);
        if density < 1e-13 {
            continue;
        }
        for &(total, share) in &totals {
            let noise = log_s.iter().map(|l| -(l + f64::ln(total))).collect();
            all.push(Node { noise, weight: density * share });
        }
    }
    all
}

/// Gauss points of the standard normal law: roots of the Hermite polynomial of that order.
fn hermite(points: usize) -> Vec<(f64, f64)> {
    // He and its derivative at x, over the square root of the order's factorial, by the recurrence of normalised ones.
    let at = |x: f64| {
        let (mut before, mut now) = (0.0, 1.0);
        for n in 0..points {
            let next = (x * now - (n as f64).sqrt() * before) / (n as f64 + 1.0).sqrt();
            (before, now) = (now, next);
        }
        (now, (points as f64).sqrt() * before)
    };
    let mut roots = Vec::new();
    let (step, end) = (0.01, 2.0 * (points as f64).sqrt() + 1.0);
    for cell in 0..(2.0 * end / step) as usize {
        let (mut low, mut high) = (-end + step * cell as f64, -end + step * (cell as f64 + 1.0));
        if (at(low).0 < 0.0) == (at(high).0 < 0.0) {
            continue;
        }
        for _ in 0..60 {
            let middle = 0.5 * (low + high);
            if (at(middle).0 < 0.0) == (at(low).0 < 0.0) { low = middle } else { high = middle }
        }
        let root = 0.5 * (low + high);
        roots.push((root, 1.0 / at(root).1.powi(2)));
    }
    assert_eq!(roots.len(), points);
    roots
}

/// Nodes of a step whose noise is on its embedding.
pub fn normal_nodes(points: usize) -> Vec<Node> {
    let axis = hermite(points);
    let mut all = vec![Node { noise: Vec::new(), weight: 1.0 }];
    for _ in 0..WIDTH {
        let longer = |node: &Node| -> Vec<Node> {
            let one = |&(at, share): &(f64, f64)| Node {
                noise: [&node.noise[..], &[at]].concat(),
                weight: node.weight * share,
            };
            axis.iter().map(one).collect()
        };
        all = all.iter().flat_map(longer).collect();
    }
    all
}

/// Which ids a soft step keeps.
#[derive(Clone, Copy)]
pub enum Kept {
    /// These, whatever the parameters are.
    Fixed(&'static [u32]),
    /// So many of the largest logits.
    Largest(usize),
}

/// What a proxy of the last soft step adds to the reward.
#[derive(Clone, Copy, PartialEq)]
pub enum Bonus {
    /// Nothing.
    None,
    /// 1 where the proxy, drawn from y, is this kept place.
    Drawn(usize),
    /// 1 where the proxy, the largest of the clean kept logits, is this id.
    Largest(u32),
}

/// What is sampled: the kept ids of each soft step, and the reward of an answer.
#[derive(Clone, Copy)]
pub struct Toy {
    pub kept: &'static [Kept],
    pub reward: [f64; VOCABULARY],
    pub bonus: Bonus,
    /// Where noise is on embeddings instead of logits: its deviation, and points of each entry's quadrature.
    pub embedded: Option<(f64, usize)>,
    /// Cells between two changes of what the second step keeps or says.
    pub cells: u32,
}

pub const ONE_STEP: Toy = Toy {
    kept: &[Kept::Fixed(&[0, 2, 3])],
    reward: [0.0, 1.0, 0.0, 1.0, 0.0],
    bonus: Bonus::None,
    embedded: None,
    cells: CELLS,
};
pub const TWO_STEPS: Toy = Toy {
    kept: &[Kept::Fixed(&[1, 4]), Kept::Fixed(&[0, 2, 3])],
    reward: [0.0, 0.0, 1.0, 0.3, 1.0],
    bonus: Bonus::None,
    embedded: None,
    cells: CELLS,
};

impl Kept {
    fn count(self) -> usize {
        match self {
            Kept::Fixed(ids) => ids.len(),
            Kept::Largest(count) => count,
        }
    }

    /// The kept ids, ascending.
    fn of(self, logits: &[f64]) -> Vec<u32> {
        match self {
            Kept::Fixed(ids) => ids.to_vec(),
            Kept::Largest(count) => {
                let mut ids: Vec<u32> = (0..VOCABULARY as u32).collect();
                ids.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
                ids.truncate(count);
                ids.sort_unstable();
                ids
            }
        }
    }
}

pub fn embedding(theta: &Parameters, id: usize) -> &[f64] {
    &theta[id * WIDTH..(id + 1) * WIDTH]
}

/// h = W x and the logits E h.
fn position(theta: &Parameters, x: &[f64]) -> ([f64; WIDTH], [f64; VOCABULARY]) {
    let w = &theta[VOCABULARY * WIDTH..];
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let h: [f64; WIDTH] = std::array::from_fn(|i| dot(&w[i * WIDTH..(i + 1) * WIDTH], x));
    (h, std::array::from_fn(|id| dot(embedding(theta, id), &h)))
}

fn log_softmax(values: &[f64]) -> Vec<f64> {
    let largest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let log_sum = values.iter().map(|v| (v - largest).exp()).sum::<f64>().ln() + largest;
    values.iter().map(|v| v - log_sum).collect()
}

/// The first of the largest.
pub fn place_of_largest(values: &[f64]) -> usize {
    (0..values.len()).fold(0, |best, i| if values[i] > values[best] { i } else { best })
}

/// One trajectory up to the answer.
pub struct Trajectory {
    /// Kept ids of the soft steps.
    pub kept: Vec<Vec<u32>>,
    /// Inputs and hidden states of all positions, logits of all.
    pub x: Vec<Vec<f64>>,
    pub h: Vec<[f64; WIDTH]>,
    pub logits: Vec<[f64; VOCABULARY]>,
    /// g and y of the soft steps.
    pub g: Vec<Vec<f64>>,
    pub y: Vec<Vec<f64>>,
    /// ln pi of the answers.
    pub answers: Vec<f64>,
}

impl Toy {
    /// Runs the model under the noise of each step; `hard` feeds the largest of y forward.
    pub fn run(&self, theta: &Parameters, noise: &[&Node], hard: bool) -> Trajectory {
        let mut all = Trajectory {
            kept: Vec::new(),
            x: vec![embedding(theta, PROMPT).to_vec()],
            h: Vec::new(),
            logits: Vec::new(),
            g: Vec::new(),
            y: Vec::new(),
            answers: Vec::new(),
        };
        for (step, node) in noise.iter().enumerate() {
            let (h, logits) = position(theta, &all.x[step]);
            let kept = self.kept[step].of(&logits);
            let clean = log_softmax(&kept.iter().map(|&id| logits[id as usize]).collect::<Vec<_>>());
            let g: Vec<f64> = match self.embedded {
                Some(_) => clean,
                None => clean.iter().zip(&node.noise).map(|(a, noise)| a + noise).collect(),
            };
            let cold: Vec<f64> = g.iter().map(|g| g / TAU).collect();
            let y: Vec<f64> = log_softmax(&cold).into_iter().map(f64::exp).collect();
            let winner = place_of_largest(&g);
            let mut x = vec![0.0; WIDTH];
            for (i, (&id, &y)) in kept.iter().zip(&y).enumerate() {
                let weight = if hard { f64::from(u8::from(i == winner)) } else { y };
                x.iter_mut().zip(embedding(theta, id as usize)).for_each(|(x, e)| *x += weight * e);
            }
            if let Some((deviation, _)) = self.embedded {
                x.iter_mut().zip(&node.noise).for_each(|(x, noise)| *x += deviation * noise);
            }
            all.kept.push(kept);
            all.x.push(x);
            all.h.push(h);
            all.logits.push(logits);
            all.g.push(g);
            all.y.push(y);
        }
        let (h, logits) = position(theta, &all.x[noise.len()]);
        all.answers = log_softmax(&logits);
        all.h.push(h);
        all.logits.push(logits);
        all
    }

    /// Nodes of each step. Where the second step's ids or proxy change with the first step's y, the first step's
    /// nodes lie between the changes.
    pub fn grid(&self, theta: &Parameters, sums: bool) -> Vec<Vec<Node>> {
        if let Some((_, points)) = self.embedded {
            return self.kept.iter().map(|_| normal_nodes(points)).collect();
        }
        let mut all: Vec<Vec<Node>> = self.kept.iter().map(|kept| nodes(kept.count(), sums)).collect();
        let jumps = |kept: &Kept| matches!(kept, Kept::Largest(_)) || matches!(self.bonus, Bonus::Largest(_));
        if let [Kept::Fixed([first, second]), last] = self.kept
            && jumps(last)
        {
            assert!(!sums, "no sums where nodes lie between changes");
            all[0] = self.pieces(theta, [*first, *second]);
        }
        all
    }

    /// Nodes of a first step with two ids, Gauss points between all places where two logits of the second step cross.
    /// Those logits are linear in y: the model is, up to the head.
    fn pieces(&self, theta: &Parameters, ids: [u32; 2]) -> Vec<Node> {
        let (_, logits) = position(theta, embedding(theta, PROMPT));
        let lead = logits[ids[0] as usize] - logits[ids[1] as usize];
        let [upper, lower] = ids.map(|id| position(theta, embedding(theta, id as usize)).1);
        let mut ends = vec![-END, END];
        for i in 0..VOCABULARY {
            for j in 0..i {
                let (rise, gap) = ((upper[i] - lower[i]) - (upper[j] - lower[j]), lower[j] - lower[i]);
                let u = gap / rise;
                // tau logit(y) = lead + eps - eps'; the coordinate is eps' - eps.
                let at = lead - TAU * (u / (1.0 - u)).ln();
                if u > 0.0 && u < 1.0 && at.abs() < END {
                    ends.push(at);
                }
            }
        }
        ends.sort_by(f64::total_cmp);
        let mut all = Vec::new();
        for pair in ends.windows(2) {
            // A fixed number, so that the sum moves smoothly with the parameters.
            let width = (pair[1] - pair[0]) / f64::from(self.cells);
            for cell in 0..self.cells {
                for (at, share) in
                    [(-0.6_f64.sqrt(), 5.0 / 18.0), (0.0, 8.0 / 18.0), (0.6_f64.sqrt(), 5.0 / 18.0)]
                {
                    let ratio = pair[0] + width * (f64::from(cell) + 0.5 + 0.5 * at);
                    let density = 1.0 / ((1.0 + ratio.exp()) * (1.0 + (-ratio).exp()));
                    all.push(Node { noise: vec![-ratio, 0.0], weight: density * width * share });
                }
            }
        }
        all
    }

    /// Calls `f` with every combination of nodes.
    pub fn each<'a>(grid: &'a [Vec<Node>], f: &mut dyn FnMut(&[&'a Node])) {
        match grid {
            [only] => only.iter().for_each(|node| f(&[node])),
            [first, second] => first.iter().for_each(|a| second.iter().for_each(|b| f(&[a, b]))),
            _ => unreachable!("one or two steps"),
        }
    }

    /// Expected reward given a trajectory.
    pub fn value(&self, trajectory: &Trajectory) -> f64 {
        let answer: f64 = self.reward.iter().zip(&trajectory.answers).map(|(r, log)| r * log.exp()).sum();
        let bonuses = self.bonuses(trajectory);
        answer + bonuses.iter().map(|(bonus, probability)| bonus * probability).sum::<f64>()
    }

    /// What the proxy may add, and how probable that is.
    pub fn bonuses(&self, trajectory: &Trajectory) -> Vec<(f64, f64)> {
        let last = self.kept.len() - 1;
        match self.bonus {
            Bonus::None => vec![(0.0, 1.0)],
            Bonus::Drawn(place) => {
                let y = trajectory.y[last][place];
                vec![(1.0, y), (0.0, 1.0 - y)]
            }
            Bonus::Largest(id) => {
                let kept = &trajectory.kept[last];
                let of_kept: Vec<f64> = kept.iter().map(|&id| trajectory.logits[last][id as usize]).collect();
                vec![(f64::from(u8::from(kept[place_of_largest(&of_kept)] == id)), 1.0)]
            }
        }
    }

    /// E[r] by the grid.
    pub fn expectation(&self, theta: &Parameters) -> f64 {
        let (grid, mut total) = (self.grid(theta, false), 0.0);
        Toy::each(&grid, &mut |noise| {
            let weight: f64 = noise.iter().map(|node| node.weight).product();
            total += weight * self.value(&self.run(theta, noise, false));
        });
        total
    }

    /// E[r] where the largest of y is fed forward: its law is the softmax of a, and can be enumerated.
    pub fn hard_expectation(&self, theta: &Parameters) -> f64 {
        fn follow(toy: &Toy, theta: &Parameters, step: usize, x: &[f64]) -> f64 {
            let (_, logits) = position(theta, x);
            if step == toy.kept.len() {
                return log_softmax(&logits).iter().zip(toy.reward).map(|(log, r)| r * log.exp()).sum();
            }
            let kept = toy.kept[step].of(&logits);
            let clean = log_softmax(&kept.iter().map(|&id| logits[id as usize]).collect::<Vec<_>>());
            let next = |&id: &u32| follow(toy, theta, step + 1, embedding(theta, id as usize));
            kept.iter().zip(clean).map(|(id, log)| log.exp() * next(id)).sum()
        }
        follow(self, theta, 0, embedding(theta, PROMPT))
    }
}

/// Gradient by central differences of fourth order.
pub fn differences(f: impl Fn(&Parameters) -> f64) -> Vec<f64> {
    let theta = parameters();
    let by = |i: usize, step: f64| {
        let mut moved = theta;
        moved[i] += step;
        f(&moved)
    };
    let step = 2e-3;
    let slope = |i, step: f64| (by(i, step) - by(i, -step)) / (2.0 * step);
    (0..PARAMETERS).map(|i| (4.0 * slope(i, step) - slope(i, 2.0 * step)) / 3.0).collect()
}
