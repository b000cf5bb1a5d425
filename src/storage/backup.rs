//! One file that holds a store: the backup an operator takes, and the recovery file kept beside the store.
//!
//! Owns the file's form and its checksum. Rows go in as they lie in the store, so secrets stay sealed and a backup
//! needs the same master key. Leaves when the recovery file is used to `storage::recover`.
//!
//! # Form
//! `SIDEKEY\0 | version u32 | master key fingerprint 16 | generation u64 | next ledger entry u64 |
//! made at u64`, then per row
//! `tree's name, length u8 before it | key, length u16 | value, length u16`, then a zero byte and the blake3 hash of
//! everything before it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::StoreError;
use super::engine::Tree;

const MAGIC: &[u8; 8] = b"SIDEKEY\0";
const VERSION: u32 = 1;
const HEAD_LEN: usize = 8 + 4 + 16 + 8 + 8 + 8;
const HASH_LEN: usize = 32;

/// Rows of several trees.
pub(super) type Rows = Vec<(Tree, Vec<u8>, Vec<u8>)>;

/// What a file says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) fingerprint: [u8; 16],
    pub(super) generation: u64,
    pub(super) next_seq: u64,
    pub(super) made_ms: u64,
}

/// Writes a file beside its place, and moves it there only once it is whole and durable.
#[derive(Debug)]
pub(super) struct Writer {
    path: PathBuf,
    partial: PathBuf,
    out: BufWriter<File>,
    hasher: blake3::Hasher,
}

impl Writer {
    pub(super) fn create(path: &Path, head: Head) -> io::Result<Self> {
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        // What an interrupted run left may have other modes.
        match fs::remove_file(&partial) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial)?;
        let mut writer =
            Self { path: path.to_owned(), partial, out: BufWriter::new(file), hasher: blake3::Hasher::new() };
        writer.put(MAGIC)?;
        writer.put(&VERSION.to_be_bytes())?;
        writer.put(&head.fingerprint)?;
        writer.put(&head.generation.to_be_bytes())?;
        writer.put(&head.next_seq.to_be_bytes())?;
        writer.put(&head.made_ms.to_be_bytes())?;
        Ok(writer)
    }

    pub(super) fn row(&mut self, tree: Tree, key: &[u8], value: &[u8]) -> io::Result<()> {
        let name = tree.name().as_bytes();
        let short = |len: usize| u16::try_from(len).map_err(|_| io::Error::other("a row too long for a backup"));
        self.put(&[name.len() as u8])?;
        self.put(name)?;
        self.put(&short(key.len())?.to_be_bytes())?;
        self.put(key)?;
        self.put(&short(value.len())?.to_be_bytes())?;
        self.put(value)
    }

    pub(super) fn finish(mut self) -> io::Result<()> {
        self.put(&[0])?;
        let hash = self.hasher.finalize();
        self.out.write_all(hash.as_bytes())?;
        let file = self.out.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        fs::rename(&self.partial, &self.path)?;
        let dir = self.path.parent().filter(|dir| !dir.as_os_str().is_empty());
        File::open(dir.unwrap_or_else(|| Path::new(".")))?.sync_all()
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.out.write_all(bytes)
    }
}

/// Reads a file whose checksum was found right; hands each row to `sink`.
pub(super) fn read(
    path: &Path,
    mut sink: impl FnMut(Tree, &[u8], &[u8]) -> Result<(), StoreError>,
) -> Result<Head, StoreError> {
    let head = verify(path)?;
    let failed = |source| StoreError::io("cannot read the backup", path, source);
    let mut file = BufReader::new(File::open(path).map_err(failed)?);
    let mut skip = [0; HEAD_LEN];
    file.read_exact(&mut skip).map_err(failed)?;
    let (mut name, mut key, mut value) = (Vec::new(), Vec::new(), Vec::new());
    loop {
        let mut len = [0];
        file.read_exact(&mut len).map_err(failed)?;
        if len[0] == 0 {
            return Ok(head);
        }
        read_exact(&mut file, &mut name, usize::from(len[0])).map_err(failed)?;
        for part in [&mut key, &mut value] {
            let mut len = [0; 2];
            file.read_exact(&mut len).map_err(failed)?;
            read_exact(&mut file, part, usize::from(u16::from_be_bytes(len))).map_err(failed)?;
        }
        let tree = std::str::from_utf8(&name).ok().and_then(Tree::named);
        let tree = tree.ok_or_else(|| StoreError::bad_backup(path, "it has a part this version does not know"))?;
        sink(tree, &key, &value)?;
    }
}

/// Checks magic, version and checksum without using anything of the file.
pub(super) fn verify(path: &Path) -> Result<Head, StoreError> {
    let failed = |source| StoreError::io("cannot read the backup", path, source);
    let bad = |why: &str| StoreError::bad_backup(path, why);
    let file = File::open(path).map_err(failed)?;
    let len = file.metadata().map_err(failed)?.len();
    let body = len.checked_sub(HASH_LEN as u64).filter(|body| *body > HEAD_LEN as u64);
    let body = body.ok_or_else(|| bad("it is too short"))?;
    let mut file = BufReader::new(file);
    let mut head = [0; HEAD_LEN];
    file.read_exact(&mut head).map_err(failed)?;
    if head[..8] != *MAGIC {
        return Err(bad("it is not a backup of sidekey"));
    }
    if head[8..12] != VERSION.to_be_bytes() {
        return Err(bad("it was made by a later version"));
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update(&head);
    hasher.update_reader((&mut file).take(body - HEAD_LEN as u64)).map_err(failed)?;
    let mut hash = [0; HASH_LEN];
    file.read_exact(&mut hash).map_err(failed)?;
    if hasher.finalize() != hash {
        return Err(bad("its checksum is wrong"));
    }
    let mut fingerprint = [0; 16];
    fingerprint.copy_from_slice(&head[12..28]);
    let number = |at: usize| u64::from_be_bytes([0, 1, 2, 3, 4, 5, 6, 7].map(|n| head[at + n]));
    Ok(Head { fingerprint, generation: number(28), next_seq: number(36), made_ms: number(44) })
}

fn read_exact(file: &mut impl Read, into: &mut Vec<u8>, len: usize) -> io::Result<()> {
    into.resize(len, 0);
    file.read_exact(into)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    const HEAD: Head = Head { fingerprint: [7; 16], generation: 3, next_seq: 5, made_ms: 9 };

    fn write(path: &Path) -> Rows {
        let rows: Rows = vec![
            (Tree::Meta, b"a".to_vec(), b"1".to_vec()),
            (Tree::Secrets, vec![0; 8], vec![1; 4096]),
            (Tree::Ledger, vec![9; 16], vec![]),
        ];
        let mut writer = Writer::create(path, HEAD).unwrap();
        rows.iter().for_each(|(tree, key, value)| writer.row(*tree, key, value).unwrap());
        writer.finish().unwrap();
        rows
    }

    #[test]
    fn what_goes_in_comes_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("backup");
        fs::write(dir.path().join("backup.partial"), "left over").unwrap();
        let rows = write(&path);
        let mut back = Rows::new();
        let head = read(&path, |tree, key, value| {
            back.push((tree, key.to_vec(), value.to_vec()));
            Ok(())
        });
        assert_eq!((head.unwrap(), back), (HEAD, rows));
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn any_flip_or_cut_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("backup");
        write(&path);
        let good = fs::read(&path).unwrap();
        for at in (0..good.len()).step_by(7).chain([good.len() - 1]) {
            let mut bad = good.clone();
            bad[at] ^= 4;
            fs::write(&path, &bad).unwrap();
            assert!(matches!(verify(&path), Err(StoreError::BadBackup { .. })), "flip at {at}");
            fs::write(&path, &good[..at]).unwrap();
            assert!(verify(&path).is_err(), "cut at {at}");
        }
    }
}
