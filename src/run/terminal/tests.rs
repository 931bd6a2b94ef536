//! Whole lines, as a person sees them.

use super::*;

fn grpo(gradient_norm: f64) -> GrpoStep {
    GrpoStep {
        step: 41,
        steps: 500,
        reward: 0.38,
        change: Some(0.02),
        live: 24,
        all_wrong: 3,
        all_right: 5,
        entropy: 1.92,
        kl: Some(0.004),
        length: 37.2,
        latent_norm: 14.2,
        latent_similarity: 0.71,
        gradient_norm,
        learning_rate: 1e-6,
        seconds: 1.9,
        tokens_per_second: 8400.0,
    }
}

#[test]
fn a_terminal_that_knows_no_more_is_given_lines() {
    let with = |set: &[(&str, &str)]| {
        plain(|name| set.iter().find(|(of, _)| *of == name).map(|(_, value)| value.into()))
    };
    assert!(!with(&[]) && !with(&[("TERM", "xterm")]));
    assert!(with(&[("TERM", "dumb")]) && with(&[("NO_COLOR", "1"), ("TERM", "xterm")]));
    assert!(!Style::of(true, true, false, false).bars && Style::of(true, false, false, false).bars);
}

#[test]
fn a_step_line_leads_with_the_reward() {
    let mut table = StepTable::new(&GRPO_COLUMNS);
    let heading = table.heading().unwrap();
    let line = table.line(&grpo(0.83).cells());
    assert_eq!(
        line,
        "  41/500    0.38 +0.02   24 live 3↓ 5↑   1.92      0.004  37   14.2 0.71   0.83   1.0e-6  1.9 s   8.4k tok/s"
    );
    let at = |text: &str, part: &str| text.split(part).next().unwrap().chars().count();
    for (title, value) in [
        ("reward", "0.38"),
        ("groups", "24 live"),
        ("entropy", "1.92"),
        ("latent", "14.2"),
        ("time", "1.9 s"),
    ] {
        assert_eq!(at(&heading, title), at(&line, value), "{title}\n{heading}\n{line}");
    }
}

#[test]
fn headings_come_again_every_20_lines() {
    let mut table = StepTable::new(&SUPERVISED_COLUMNS);
    let shown: Vec<bool> = (0..41)
        .map(|_| {
            let due = table.heading().is_some();
            table.line(&SupervisedStep::default().cells());
            due
        })
        .collect();
    let expected: Vec<bool> = (0..41).map(|line| line % 20 == 0).collect();
    assert_eq!(shown, expected);
}

#[test]
fn only_values_past_three_sigma_are_marked() {
    let mut table = StepTable::new(&GRPO_COLUMNS);
    for i in 0..15 {
        table.line(&grpo(1.0 + 0.1 * f64::from(i % 2)).cells());
    }
    assert!(!table.line(&grpo(50.0).cells()).contains('σ'), "too few values to judge by");
    let mut table = StepTable::new(&GRPO_COLUMNS);
    for i in 0..40 {
        let line = table.line(&grpo(1.0 + 0.1 * f64::from(i % 2)).cells());
        assert!(!line.contains('σ'), "{line}");
    }
    // Mean 1.05, deviation 0.05.
    assert!(!table.clone().line(&grpo(1.19).cells()).contains('σ'));
    assert!(table.clone().line(&grpo(1.21).cells()).contains("1.21 +3.2σ"));
    assert!(table.clone().line(&grpo(0.80).cells()).contains("0.80 -5.0σ"));
    assert!(table.clone().line(&grpo(f64::NAN).cells()).contains("NaN"));
}

#[test]
fn quiet_and_json_show_nothing_and_pipes_get_no_bar() {
    for (style, lines, bars) in [
        (Style::of(true, false, false, false), true, true),
        (Style::of(false, false, false, false), true, false),
        (Style::of(true, true, false, false), true, false),
        (Style::of(true, false, true, false), false, false),
        (Style::of(true, false, false, true), false, false),
    ] {
        let mut out = Vec::new();
        let mut screen = Screen::new(&mut out, style);
        screen.progress("cot", 1, 2, Duration::from_secs(1)).unwrap();
        screen.line("a line").unwrap();
        screen.clear().unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text.contains("a line\n"), lines, "{style:?}: {text:?}");
        assert_eq!(text.contains("1/2"), bars, "{style:?}: {text:?}");
        assert_eq!(text.contains('\x1b'), bars, "{style:?}: {text:?}");
    }
}

#[test]
fn a_bar_tells_what_is_left() {
    assert_eq!(
        bar("cot", 10, 30, Duration::from_secs(5)),
        format!("cot  {}{}  10/30  5.0 s, about 10.0 s left", "━".repeat(10), "─".repeat(20))
    );
    assert!(!bar("cot", 30, 30, Duration::from_secs(5)).contains("left"));
    assert!(bar("cot", 0, 0, Duration::ZERO).contains("0/0"));
    assert_eq!([0.0121, 59.94, 59.96, 3599.6].map(duration), ["12 ms", "59.9 s", "1 min 00 s", "1 h 00 min"]);
    assert_eq!([7.0, 999.6, 8400.0, 1.25e6].map(count), ["7", "1.0k", "8.4k", "1.2M"]);
}

#[test]
fn tables_align_their_numbers() {
    let row = |cells: [&str; 3]| cells.map(str::to_string).to_vec();
    let text = table(
        &["arm", "accuracy", "note"],
        &[row(["coconut", "41.2 %", "start"]), row(["dropout", "9.5 %", ""])],
    );
    assert_eq!(
        text,
        "arm      accuracy  note\n───────  ────────  ─────\ncoconut    41.2 %  start\ndropout     9.5 %\n"
    );
}

#[test]
fn the_memory_table_adds_up() {
    let row = |name: &str, bytes, certainty| MemoryRow { name: name.into(), bytes, certainty };
    let gib = 1u64 << 30;
    let rows = [
        row("weights + master + moments", 8 * gib / 5, Certainty::Exact),
        row("saved activations", 6 * gib, Certainty::Estimate),
    ];
    let text = memory_table(&rows, Some(79 * gib));
    for words in ["GiB", "1.6     exact", "6.0     estimate", "7.6     of 79.0 free: fits"] {
        assert!(text.contains(words), "{text}");
    }
    assert!(memory_table(&rows, Some(7 * gib)).contains("may not fit"));
    let few = [row("weights", 3 << 20, Certainty::Exact), row("tape", 3 * gib, Certainty::Exact)];
    assert!(memory_table(&few, None).contains("3.0     exact"), "a small row beside a large one");
    assert_eq!([827 << 20, 5 * gib / 4 * 5].map(bytes), ["827 MiB", "6.25 GiB"]);
    assert!(memory_table(&[row("weights", 1 << 20, Certainty::Exact)], None).contains("MiB"));
}
