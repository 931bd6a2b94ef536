//! What the system says of the disk below a folder; nothing on systems that are asked in another way.

use std::path::Path;

/// Bytes that this process may still write where `folder`, which is there, lies.
#[cfg(unix)]
pub fn free(folder: &Path) -> Option<u64> {
    let found = rustix::fs::statvfs(folder).ok()?;
    // Less than what is free: some of it is kept for the system.
    Some(found.f_bavail.saturating_mul(found.f_frsize))
}

/// Bytes that this process may still write where `folder`, which is there, lies.
#[cfg(not(unix))]
pub fn free(_: &Path) -> Option<u64> {
    None
}

#[cfg(all(test, unix))]
mod tests {
    #[test]
    fn a_disk_has_room_and_a_folder_that_is_not_there_has_no_disk() {
        let folder = tempfile::tempdir().unwrap();
        assert!(super::free(folder.path()).unwrap() > 0);
        assert_eq!(super::free(&folder.path().join("nothing")), None);
    }
}
