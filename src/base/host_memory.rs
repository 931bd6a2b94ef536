//! What the system says of memory: how much this process has, and how much is left. Read from /proc; none where there is
//! no such thing.

use std::fs;

/// Bytes that programs may still take.
pub fn free() -> Option<u64> {
    field("/proc/meminfo", "MemAvailable:")
}

/// Bytes of memory that this process has now.
pub fn resident() -> Option<u64> {
    field("/proc/self/status", "VmRSS:")
}

/// The most that [`resident`] ever was.
pub fn most_resident() -> Option<u64> {
    field("/proc/self/status", "VmHWM:")
}

/// The kibibytes that `file` gives for `name`, in bytes.
fn field(file: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    let kibibytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kibibytes << 10)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn what_is_touched_is_resident() {
        let before = resident().unwrap();
        let bytes = 64 << 20;
        let mut touched = vec![1_u8; bytes];
        // A compiler that sees no use of it leaves it out.
        std::hint::black_box(&mut touched);
        // Other tests of this process come and go: half of it shows.
        assert!(resident().unwrap() > before.saturating_sub(bytes as u64 / 2), "{}", touched.len());
        assert!(most_resident().unwrap() >= bytes as u64);
        assert!(free().unwrap() > 0);
        assert_eq!(field("/proc/self/status", "NoSuchField:"), None);
    }
}
