use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::chain::{Head, Key, Link, put};
use super::log::{Log, segments};
use super::read::{AuditFilter, AuditVerdict, records, verify};
use crate::audit::{Actor, Note};
use crate::virtual_key::DigestKey;

const START_MS: u64 = 1_700_000_000_000;
const DAY_MS: u64 = 86_400_000;

fn key() -> Key {
    Key::new(&DigestKey::from_bytes([7; 32]))
}

fn note(n: usize) -> Note {
    let by = Actor::user(1000 + u32::try_from(n % 2).unwrap(), "socket");
    Note {
        after: Some(serde_json::json!({"n": n})),
        ..Note::new(by, format!("key.{}", ["update", "rotate"][n % 2]), format!("key {n}"))
    }
}

fn open(dir: &Path, anchor: Option<Link>) -> (Log, Option<String>) {
    let (mut log, damage) = Log::open(dir, key(), anchor).unwrap();
    log.set_segment_max(1200);
    (log, damage)
}

/// A log of `count` records, some of them appended together, over several files.
fn written(dir: &Path, count: usize) -> Link {
    let (mut log, damage) = open(dir, None);
    assert_eq!(damage, None);
    let mut n = 0;
    while n < count {
        let together = (1 + n % 3).min(count - n);
        log.append(START_MS + n as u64, (n..n + together).map(note).collect()).unwrap();
        n += together;
    }
    log.head()
}

fn judged(log: &Log, dir: &Path) -> AuditVerdict {
    verify(dir, &key(), log.whole_head(), None).unwrap()
}

fn files(dir: &Path) -> Vec<PathBuf> {
    segments(dir).unwrap().into_iter().map(|(_, path)| path).collect()
}

#[test]
fn what_is_written_is_whole_and_found() {
    let dir = tempfile::tempdir().unwrap();
    let last = written(dir.path(), 20);
    assert!(files(dir.path()).len() > 3);
    let (log, damage) = open(dir.path(), Some(last));
    let verdict = judged(&log, dir.path());
    assert_eq!((damage, verdict.whole, verdict.records, verdict.last), (None, true, 20, 20));
    let ask = |filter: AuditFilter| {
        let page = records(dir.path(), &key(), log.whole_head(), &AuditFilter { limit: 4, ..filter }).unwrap();
        (page.records.iter().map(|record| record.seq).collect::<Vec<_>>(), page.next)
    };
    let all = AuditFilter::default();
    for (name, filter, want) in [
        ("the newest", all.clone(), (vec![20, 19, 18, 17], Some(17))),
        ("the next page", AuditFilter { cursor: Some(17), ..all.clone() }, (vec![16, 15, 14, 13], Some(13))),
        ("the last page", AuditFilter { cursor: Some(4), ..all.clone() }, (vec![3, 2, 1], None)),
        ("an actor's", AuditFilter { actor: Some("uid:1001".into()), ..all.clone() }, (vec![20, 18, 16, 14], Some(14))),
        (
            "an action",
            AuditFilter { action: Some("key.rotate".into()), ..all.clone() },
            (vec![20, 18, 16, 14], Some(14)),
        ),
        ("all on keys", AuditFilter { action: Some("key".into()), cursor: Some(3), ..all.clone() }, (vec![2, 1], None)),
        ("an object's", AuditFilter { object: Some("key 4".into()), ..all.clone() }, (vec![5], None)),
        ("by its name alone", AuditFilter { object: Some("4".into()), ..all.clone() }, (vec![5], None)),
        ("since a time", AuditFilter { since_ms: Some(START_MS + 18), ..all.clone() }, (vec![20, 19], None)),
        ("the oldest", AuditFilter { oldest_first: true, ..all.clone() }, (vec![1, 2, 3, 4], Some(4))),
        ("the last", AuditFilter { oldest_first: true, cursor: Some(17), ..all.clone() }, (vec![18, 19, 20], None)),
        ("nobody's", AuditFilter { actor: Some("token:x".into()), ..all }, (vec![], None)),
    ] {
        assert_eq!(ask(filter), want, "{name}");
    }
}

#[test]
fn a_record_is_shown_as_it_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path(), 20);
    let (log, _) = open(dir.path(), None);
    let filter = AuditFilter { oldest_first: true, limit: 100, ..AuditFilter::default() };
    let page = records(dir.path(), &key(), log.whole_head(), &filter).unwrap();
    let shown: String = page.records.iter().map(|record| serde_json::to_string(record).unwrap() + "\n").collect();
    let kept: Vec<u8> = files(dir.path()).iter().flat_map(|file| fs::read(file).unwrap()).collect();
    assert_eq!(shown.as_bytes(), kept);
}

#[test]
fn an_interrupted_append_is_taken_in_or_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let last = written(dir.path(), 5);
    let before = fs::read(dir.path().join("head")).unwrap();
    let (mut log, _) = open(dir.path(), Some(last));
    log.append(START_MS, vec![note(5), note(6)]).unwrap();
    drop(log);
    // Killed before the head was written, and in the middle of the next line.
    fs::write(dir.path().join("head"), before).unwrap();
    let file = files(dir.path()).pop().unwrap();
    let mut bytes = fs::read(&file).unwrap();
    bytes.extend_from_slice(b"{\"seq\":8,\"time\":");
    fs::write(&file, bytes).unwrap();
    let (mut log, damage) = open(dir.path(), Some(last));
    assert_eq!((damage, log.head().seq), (None, 7));
    log.append(START_MS, vec![note(7)]).unwrap();
    assert_eq!((judged(&log, dir.path()).whole, log.head().seq), (true, 8));
}

#[test]
fn an_earlier_state_put_back_is_found_by_the_store_or_a_noted_head() {
    let (dir, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    written(dir.path(), 9);
    for file in fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()) {
        fs::copy(&file, copy.path().join(file.file_name().unwrap())).unwrap();
    }
    let (mut log, _) = open(dir.path(), None);
    let later = log.append(START_MS, vec![note(9)]).unwrap();
    let noted = (later.seq, later.hex());
    let noted = Some((noted.0, noted.1.as_str()));
    assert!(verify(dir.path(), &key(), log.whole_head(), noted).unwrap().whole);
    // Alone it looks as it did then.
    let (log, damage) = open(copy.path(), None);
    assert_eq!((damage, judged(&log, copy.path()).whole), (None, true));
    let verdict = verify(copy.path(), &key(), log.whole_head(), noted).unwrap();
    assert_eq!(verdict.bad.unwrap().seq, 10);
    drop(log);
    let (log, damage) = open(copy.path(), Some(later));
    assert!(damage.is_some());
    assert_eq!(judged(&log, copy.path()).bad.unwrap().seq, 10);
}

#[test]
fn what_is_too_old_goes_by_the_file_and_leaves_the_chain_whole() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open(dir.path(), None);
    for n in 0..20 {
        log.append(START_MS + n as u64 * DAY_MS, vec![note(n)]).unwrap();
    }
    assert_eq!(log.too_old(START_MS).unwrap(), None);
    let through = log.too_old(START_MS + 10 * DAY_MS).unwrap().unwrap();
    assert!((5..=10).contains(&through), "{through}");
    let before = files(dir.path()).len();
    log.cut(through).unwrap();
    assert!(files(dir.path()).len() < before);
    let verdict = judged(&log, dir.path());
    assert_eq!((verdict.whole, verdict.first, verdict.records), (true, through + 1, 20 - through));
    drop(log);
    let (log, damage) = open(dir.path(), None);
    assert_eq!((damage, judged(&log, dir.path()).whole), (None, true));
    // One file more than was cut, taken away by hand.
    fs::remove_file(&files(dir.path())[0]).unwrap();
    assert_eq!(judged(&log, dir.path()).bad.unwrap().seq, through + 1);
}

#[test]
fn a_removed_log_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let last = written(dir.path(), 6);
    fs::remove_dir_all(dir.path()).unwrap();
    let (mut log, damage) = open(dir.path(), Some(last));
    assert!(damage.is_some());
    log.append(START_MS, vec![note(1)]).unwrap();
    assert_eq!(judged(&log, dir.path()).bad.unwrap().seq, 1);
}

/// What somebody with the files, but not the master key, does to them.
#[derive(Clone, Debug)]
enum Harm {
    Flip { at: prop::sample::Index, bit: u8 },
    Remove(prop::sample::Index),
    Swap(prop::sample::Index, prop::sample::Index),
    Repeat(prop::sample::Index, prop::sample::Index),
    Forge(prop::sample::Index),
    Truncate(prop::sample::Index),
    RemoveFile(prop::sample::Index),
    RemoveHead,
}

fn harm() -> impl Strategy<Value = Harm> {
    let at = || any::<prop::sample::Index>();
    prop_oneof![
        8 => (at(), 0..8u8).prop_map(|(at, bit)| Harm::Flip { at, bit }),
        2 => at().prop_map(Harm::Remove),
        2 => (at(), at()).prop_map(|(a, b)| Harm::Swap(a, b)),
        2 => (at(), at()).prop_map(|(a, b)| Harm::Repeat(a, b)),
        2 => at().prop_map(Harm::Forge),
        4 => at().prop_map(Harm::Truncate),
        1 => at().prop_map(Harm::RemoveFile),
        1 => Just(Harm::RemoveHead),
    ]
}

/// Does it; false when it changes nothing.
fn do_harm(dir: &Path, harm: &Harm) -> bool {
    let files = files(dir);
    let all: Vec<u8> = files.iter().flat_map(|file| fs::read(file).unwrap()).collect();
    let mut lines: Vec<Vec<u8>> = all.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
    let count = lines.len();
    match harm {
        Harm::Flip { at, bit } => {
            let mut at = at.index(all.len());
            for file in &files {
                let mut bytes = fs::read(file).unwrap();
                if at < bytes.len() {
                    bytes[at] ^= 1 << bit;
                    fs::write(file, bytes).unwrap();
                    return true;
                }
                at -= bytes.len();
            }
            return false;
        }
        Harm::Truncate(at) => {
            // Without its last line break alone, the record is all there, and is mended.
            let mut at = at.index(all.len() - 1);
            for file in &files {
                let bytes = fs::read(file).unwrap();
                let kept = at.min(bytes.len());
                at -= kept;
                match kept {
                    0 => fs::remove_file(file).unwrap(),
                    kept => fs::write(file, &bytes[..kept]).unwrap(),
                }
            }
            return true;
        }
        Harm::RemoveFile(at) => {
            fs::remove_file(at.get(&files)).unwrap();
            return true;
        }
        Harm::RemoveHead => {
            fs::remove_file(dir.join("head")).unwrap();
            return true;
        }
        Harm::Remove(at) => drop(lines.remove(at.index(count))),
        Harm::Swap(a, b) => lines.swap(a.index(count), b.index(count)),
        Harm::Repeat(a, b) => {
            let line = lines[a.index(count)].clone();
            lines.insert(b.index(count + 1), line);
        }
        Harm::Forge(at) => {
            // Everything right but the key.
            let at = at.index(count + 1);
            let hash = match at.checked_sub(1).map(|before| &lines[before]) {
                Some(before) => blake3::hash(&before[..before.len() - 149]).into(),
                None => [0; 32],
            };
            let mut line = Vec::new();
            let theirs = Key::new(&DigestKey::from_bytes([8; 32]));
            put(&mut line, &theirs, Link { seq: at as u64, hash }, START_MS, note(at)).unwrap();
            lines.insert(at, line);
        }
    }
    if lines.concat() == all {
        return false;
    }
    files[1..].iter().for_each(|file| fs::remove_file(file).unwrap());
    fs::write(&files[0], lines.concat()).unwrap();
    true
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_harm_goes_unfound(count in 1..24usize, harm in harm(), anchored in any::<bool>()) {
        let dir = tempfile::tempdir().unwrap();
        let last = written(dir.path(), count);
        prop_assume!(do_harm(dir.path(), &harm));
        let (mut log, damage) = open(dir.path(), anchored.then_some(last));
        let verdict = judged(&log, dir.path());
        prop_assert!(damage.is_some() || !verdict.whole, "{verdict:?}");
        // And it stays to be found, whatever comes after.
        for n in 0..8 {
            log.append(START_MS, vec![note(n)]).unwrap();
        }
        let verdict = judged(&log, dir.path());
        prop_assert!(!verdict.whole, "{verdict:?}");
        let bad = verdict.bad.unwrap();
        prop_assert!(bad.seq <= count as u64 + 1, "{bad:?}");
        drop(log);
        let (log, _) = open(dir.path(), None);
        prop_assert!(!judged(&log, dir.path()).whole);
    }

    #[test]
    fn one_place_of_the_head_is_enough(count in 1..12usize, at in 0..(4096 + 112usize), bit in 0..8u8) {
        let dir = tempfile::tempdir().unwrap();
        let last = written(dir.path(), count);
        let path = dir.path().join("head");
        let mut bytes = fs::read(&path).unwrap();
        prop_assume!(at < bytes.len());
        bytes[at] ^= 1 << bit;
        prop_assert!(Head::read(&bytes, &key()).is_some());
        fs::write(&path, bytes).unwrap();
        let (log, _) = open(dir.path(), None);
        prop_assert_eq!(log.head(), last);
        prop_assert!(judged(&log, dir.path()).whole);
    }
}
