use super::*;
use std::sync::atomic::AtomicUsize;
use std::thread;

fn message(payload: &(dyn Any + Send)) -> &str {
    payload.downcast_ref::<&str>().copied().unwrap_or_default()
}

/// A section whose tasks, one for each member, wait until all members have begun one: so every member has.
fn all_members(team: &Team, work: impl Fn(bool) + Sync) -> thread::Result<bool> {
    let (begun, members) = (AtomicUsize::new(0), team.members());
    let caller = thread::current().id();
    catch_unwind(AssertUnwindSafe(|| {
        team.run(members as u32, &|_| {
            begun.fetch_add(1, Ordering::SeqCst);
            while begun.load(Ordering::SeqCst) < members {
                thread::yield_now();
            }
            work(thread::current().id() == caller);
        })
    }))
}

/// Panics without the message on the terminal.
fn fail(message: &'static str) {
    resume_unwind(Box::new(message));
}

#[test]
fn all_members_work_awake_or_asleep() {
    let team = Team::new(4);
    for pause in [0, 0, 3, 0, 1] {
        let callers = AtomicUsize::new(0);
        let done = all_members(&team, |caller| {
            callers.fetch_add(usize::from(caller), Ordering::Relaxed);
        });
        assert!(done.unwrap());
        assert_eq!(callers.into_inner(), 1);
        thread::sleep(pause * 10 * LINGER);
    }
}

#[test]
fn helpers_without_work_park_and_are_woken() {
    let team = Team::new(3);
    for _ in 0..3 {
        let parked = || team.shared.asleep.iter().all(|asleep| asleep.0.load(Ordering::SeqCst));
        let since = Instant::now();
        while !parked() {
            assert!(since.elapsed() < Duration::from_secs(20), "helpers stay awake");
            thread::sleep(LINGER);
        }
        assert!(all_members(&team, |_| ()).unwrap());
    }
}

#[test]
fn thousands_of_tiny_sections_with_and_without_pauses() {
    let team = Team::new(3);
    let done = AtomicUsize::new(0);
    let mut expected = 0;
    for section in 0..6000_u32 {
        let count = 1 + section % 7;
        assert!(team.run(count, &|task| {
            done.fetch_add(task + 1, Ordering::Relaxed);
        }));
        expected += (count * (count + 1) / 2) as usize;
        assert_eq!(done.load(Ordering::Relaxed), expected, "section {section}");
        match section % 400 {
            0 => thread::sleep(3 * LINGER),
            // Just about when helpers go to sleep.
            100..110 => {
                let since = Instant::now();
                while since.elapsed() < LINGER + Duration::from_micros(u64::from(section % 400 - 100)) {
                    std::hint::spin_loop();
                }
            }
            _ => (),
        }
    }
}

#[test]
fn an_empty_section_is_done() {
    assert!(Team::new(2).run(0, &|_| panic!("there is no task")));
}

#[test]
fn panics_of_the_caller_of_helpers_and_of_both_reach_the_caller() {
    let team = Team::new(3);
    for _ in 0..20 {
        let own = all_members(&team, |caller| {
            if caller {
                fail("caller")
            }
        });
        assert_eq!(message(&*own.unwrap_err()), "caller");
        let helpers = all_members(&team, |caller| {
            if !caller {
                fail("helper")
            }
        });
        assert_eq!(message(&*helpers.unwrap_err()), "helper");
        let both = all_members(&team, |caller| fail(if caller { "caller" } else { "helper" }));
        assert_eq!(message(&*both.unwrap_err()), "caller");
        assert!(!is_inside());
        // Nothing is left over for the next section, and all members are still there.
        assert!(all_members(&team, |_| ()).unwrap());
        assert!(!team.shared.panicked.load(Ordering::SeqCst));
    }
}

#[test]
fn what_a_panic_leaves_is_done_by_the_others() {
    let team = Team::new(2);
    let done = AtomicUsize::new(0);
    let caller = thread::current().id();
    let section = catch_unwind(AssertUnwindSafe(|| {
        team.run(40, &|_| {
            if thread::current().id() == caller {
                fail("caller");
            }
            done.fetch_add(1, Ordering::Relaxed);
        })
    }));
    assert_eq!(message(&*section.unwrap_err()), "caller");
    // The helper may have come too late; it never stops on the way.
    assert!(matches!(done.into_inner(), 0 | 39 | 40));
}

/// A payload whose drop panics.
struct Grenade;

impl Drop for Grenade {
    fn drop(&mut self) {
        if !thread::panicking() {
            fail("dropped");
        }
    }
}

#[test]
fn a_helper_that_is_lost_does_not_hold_up_the_section() {
    let team = Team::new(3);
    // The second helper's payload replaces the first's, whose drop ends that helper's thread.
    let section = all_members(&team, |caller| {
        if !caller {
            resume_unwind(Box::new(Grenade));
        }
    });
    std::mem::forget(section.unwrap_err());
    for count in 1..40 {
        let done = AtomicUsize::new(0);
        assert!(team.run(count, &|_| {
            done.fetch_add(1, Ordering::Relaxed);
        }));
        assert_eq!(done.into_inner(), count as usize);
    }
}

#[test]
fn a_section_belongs_to_one_thread_at_a_time() {
    let team = Team::new(3);
    let refused = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for section in 0..500_u32 {
                    let own: Vec<AtomicUsize> = (0..5).map(|_| AtomicUsize::new(0)).collect();
                    let ran = team.run(5, &|task| {
                        own[task].fetch_add(1, Ordering::Relaxed);
                    });
                    let visits = usize::from(ran);
                    assert!(own.iter().all(|own| own.load(Ordering::Relaxed) == visits), "section {section}");
                    refused.fetch_add(1 - visits, Ordering::Relaxed);
                }
            });
        }
    });
    assert!(refused.into_inner() < 2000);
    let inside = all_members(&team, |_| assert!(!team.run(2, &|_| panic!("two sections at once"))));
    assert!(inside.unwrap());
}

#[test]
fn teams_end_while_their_helpers_watch_sleep_or_have_not_begun() {
    for round in 0..60 {
        let team = Team::new(1 + round % 4);
        if round % 3 > 0 {
            assert!(all_members(&team, |_| ()).unwrap());
        }
        if round % 5 == 0 {
            thread::sleep(2 * LINGER);
        }
        let shared = Arc::downgrade(&team.shared);
        drop(team);
        assert!(shared.upgrade().is_none(), "a helper outlives its team");
    }
}
