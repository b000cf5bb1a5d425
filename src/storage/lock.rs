//! The data directory: made 0700, held by one process at a time, its files kept to their owner.
//!
//! Owns the lock file and the modes. Leaves what is in the store's directory to `storage::engine`.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use super::StoreError;

const FILE_NAME: &str = "lock";
/// How long a lock held by this very process is waited for: the store it closes needs a moment to let go.
const OWN_RETRIES: u32 = 40;
const OWN_PAUSE: Duration = Duration::from_millis(50);

/// The lock on a data directory; dropping it lets go. It holds the owner's pid, for the message of who comes second.
#[derive(Debug)]
pub(super) struct DirLock {
    _file: File,
}

impl DirLock {
    pub(super) fn take(dir: &Path) -> Result<Self, StoreError> {
        let path = dir.join(FILE_NAME);
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let mut file = open.map_err(|source| StoreError::io("cannot open the lock file", &path, source))?;
        let mut tries = 0;
        while let Err(error) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
            if error != rustix::io::Errno::WOULDBLOCK {
                return Err(StoreError::io("cannot lock", &path, error.into()));
            }
            let pid = read_pid(&mut file);
            if pid != Some(std::process::id()) || tries == OWN_RETRIES {
                return Err(StoreError::Locked { dir: dir.to_owned(), pid });
            }
            tries += 1;
            std::thread::sleep(OWN_PAUSE);
        }
        write_pid(&mut file).map_err(|source| StoreError::io("cannot write the lock file", &path, source))?;
        Ok(Self { _file: file })
    }
}

fn read_pid(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.take(16).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn write_pid(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())
}

/// Makes `dir` with mode 0700, or takes away what group and others may do in it. A directory that is not ours to
/// change (a mounted volume) is left, with a warning: what lies in it is protected on its own.
pub(super) fn prepare_dir(dir: &Path) -> Result<(), StoreError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|source| StoreError::io("cannot make the directory", dir, source))?;
    if let Err(error) = restrict(dir, 0o700) {
        tracing::warn!(dir = %dir.display(), %error, "directory is open to group or others and cannot be changed");
    }
    Ok(())
}

/// Takes group's and others' rights from every file below `dir`: sled makes its files by the umask.
pub(super) fn restrict_files(dir: &Path) -> io::Result<()> {
    for item in fs::read_dir(dir)? {
        let item = item?;
        if item.file_type()?.is_dir() {
            restrict(&item.path(), 0o700)?;
            restrict_files(&item.path())?;
        } else if let Err(error) = restrict(&item.path(), 0o600) {
            // sled replaces its index files at its own time.
            if error.kind() != io::ErrorKind::NotFound {
                return Err(error);
            }
        }
    }
    Ok(())
}

fn restrict(path: &Path, mode: u32) -> io::Result<()> {
    let found = fs::metadata(path)?.permissions().mode() & 0o777;
    if found & 0o077 == 0 { Ok(()) } else { fs::set_permissions(path, fs::Permissions::from_mode(mode)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_who_holds_it() {
        let dir = tempfile::tempdir().unwrap();
        let first = DirLock::take(dir.path()).unwrap();
        fs::write(dir.path().join(FILE_NAME), "1\n").unwrap();
        match DirLock::take(dir.path()) {
            Err(StoreError::Locked { pid: Some(1), .. }) => {}
            other => panic!("{other:?}"),
        }
        drop(first);
        assert!(DirLock::take(dir.path()).is_ok());
    }

    #[test]
    fn modes_are_fixed() {
        let dir = tempfile::tempdir().unwrap();
        let (inner, file) = (dir.path().join("a"), dir.path().join("a/f"));
        fs::create_dir(&inner).unwrap();
        fs::write(&file, "x").unwrap();
        fs::set_permissions(&inner, fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o664)).unwrap();
        prepare_dir(&inner).unwrap();
        restrict_files(&inner).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&inner), mode(&file)), (0o700, 0o600));
    }
}
