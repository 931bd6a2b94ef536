use super::*;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Counters of visits that must each be one.
fn visited(count: usize, run: impl FnOnce(&(dyn Fn(usize) + Sync))) -> bool {
    let visits: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
    run(&|task| {
        visits[task].fetch_add(1, Ordering::Relaxed);
    });
    visits.iter().all(|visits| visits.load(Ordering::Relaxed) == 1)
}

#[test]
fn every_task_and_every_row_is_visited_once_on_any_number_of_threads() {
    for workers in 1..=5 {
        with_threads(workers, || {
            for count in [0, 1, 2, 7, 100] {
                assert!(visited(count, |visit| for_each_task(count, visit)));
                let (mut long, mut short) = (vec![0; 3 * count], vec![0; count]);
                rows2((&mut long, 3), (&mut short, 1), WORTH, |first, long, short| {
                    for (row, (long, short)) in (first..).zip(long.chunks_mut(3).zip(short)) {
                        long.iter_mut().for_each(|value| *value += row + 1);
                        *short += row + 1;
                    }
                });
                assert!(short.iter().zip(1..).all(|(&value, row)| value == row));
                assert!(long.chunks(3).zip(1..).all(|(values, row)| values == [row; 3]));
                let mut ragged = vec![0; 3 * count + 2];
                rows(&mut ragged, 3, WORTH, |first, part| {
                    part.chunks_mut(3).zip(first..).for_each(|(row, index)| row.fill(index));
                });
                assert!(ragged.iter().enumerate().all(|(at, &row)| row == at / 3));
            }
        });
    }
}

#[test]
fn slices_are_cut_at_the_same_places() {
    with_threads(3, || {
        for count in [0, 1, 5, 64, 1001] {
            let (mut a, mut b, mut c) = (vec![0; count], vec![0_u8; count], vec![0; 2 * count]);
            let pairs = Rows { data: &mut c[..], cols: 2 };
            let parts = AtomicUsize::new(0);
            elements(
                ((&mut a[..], &mut b[..]), pairs),
                WORTH,
                |first, ((a, b), c): ((&mut [usize], &mut [u8]), Rows<usize>)| {
                    parts.fetch_add(1, Ordering::Relaxed);
                    assert!(a.len() == b.len() && c.data.len() == 2 * a.len());
                    for (i, a) in a.iter_mut().enumerate() {
                        *a = first + i;
                        b[i] += 1;
                        c.data[2 * i..][..2].fill(first + i);
                    }
                },
            );
            assert!(a.iter().enumerate().all(|(at, &value)| at == value));
            assert!(b.iter().all(|&visits| visits == 1));
            assert!(c.iter().enumerate().all(|(at, &value)| at / 2 == value));
            assert!(parts.into_inner() <= 12);
        }
    });
}

#[test]
fn tasks_are_as_many_as_their_work_is_worth() {
    with_threads(3, || {
        assert_eq!(threads(), 3);
        assert_eq!(task_count(0, 100), 1);
        assert_eq!(task_count(100, 1), 1);
        assert_eq!(task_count(2, WORTH), 2);
        assert_eq!(task_count(4, WORTH), 3);
        assert_eq!(task_count(1000, WORTH), 12);
        assert_eq!(task_count(usize::MAX, usize::MAX), 12);
        for_each_task(2, |_| assert_eq!(threads(), 1));
    });
}

#[test]
fn sections_nest_and_panics_pass() {
    with_threads(3, || {
        let sums: Vec<AtomicUsize> = (0..20).map(|_| AtomicUsize::new(0)).collect();
        for_each_task(20, |outer| {
            let here = std::thread::current().id();
            for_each_task(10, |inner| {
                assert_eq!(std::thread::current().id(), here);
                sums[outer].fetch_add(inner, Ordering::Relaxed);
            });
        });
        assert!(sums.iter().all(|sum| sum.load(Ordering::Relaxed) == 45));
        let failing = || for_each_task(8, |task| assert!(task != 5, "task five"));
        assert!(catch_unwind(failing).is_err());
        assert!(!is_inside());
        assert!(visited(50, |visit| for_each_task(50, visit)));
    });
}

#[test]
fn a_task_may_bring_its_own_threads() {
    with_threads(2, || {
        let total = AtomicUsize::new(0);
        for_each_task(6, |_| {
            assert_eq!(threads(), 1);
            with_threads(3, || {
                assert_eq!(threads(), 3);
                for_each_task(7, |task| {
                    total.fetch_add(task, Ordering::Relaxed);
                });
            });
            assert_eq!(threads(), 1);
        });
        assert_eq!(total.into_inner(), 6 * 21);
        assert_eq!(threads(), 2);
    });
}

#[test]
fn the_former_threads_come_back_after_a_panic() {
    with_threads(2, || {
        let failing = || with_threads(4, || for_each_task(9, |task| assert!(task < 4, "no further")));
        assert!(catch_unwind(failing).is_err());
        assert_eq!(threads(), 2);
        // And out of a task, which stays a task.
        for_each_task(4, |_| {
            assert!(catch_unwind(AssertUnwindSafe(|| with_threads(2, || panic!("inside")))).is_err());
            assert!(is_inside());
        });
    });
}

#[test]
fn threads_that_share_everyone_do_all_their_tasks() {
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for count in 2..60 {
                    assert!(visited(count, |visit| for_each_task(count, visit)));
                }
            });
        }
    });
}
