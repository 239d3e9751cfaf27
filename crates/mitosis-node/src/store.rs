//! What a restarted daemon must know: seeds in the state directory, children beside the socket.
//!
//! Seeds hold a capability, so their files are readable by their owner only (the daemon's umask is
//! 077). A record is written whole under another name and renamed: half a record is none. A child's is
//! never written over another one, and half of it is none for it ends with the brace that it begins with.

use crate::children::Start;
use crate::error::NodeError;
use mitosis_descriptor::{Phase, SeedId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A seed, apart from its descriptor.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SeedRecord {
    /// Public id.
    pub seed: String,
    /// The reference, with the secret.
    pub reference: String,
    /// Name given by the caller.
    pub name: Option<String>,
    /// Pid of the parent.
    pub parent_pid: i32,
    /// Milliseconds since 1970.
    pub created_unix_ms: u64,
    /// Milliseconds since 1970.
    pub expires_unix_ms: Option<u64>,
    /// Pid and start time of the shadow.
    pub shadow: Option<(i32, u64)>,
    /// File with the pages, when they have moved.
    pub spool: Option<PathBuf>,
    /// Of a process of a tree that is not its root: the root's seed.
    #[serde(default)]
    pub tree: Option<String>,
    /// Child in whose namespace the shadow lives.
    pub home: Option<u64>,
    /// Whether the shadow depends on a foreign pid namespace.
    pub bound: bool,
}

/// The directories.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    seeds: PathBuf,
    logs: PathBuf,
    children: PathBuf,
    /// Held as long as the daemon lives.
    _locks: Arc<[File; 2]>,
}

/// How long a daemon that was just killed may still seem to run: a guard that it was starting has a
/// copy of all its descriptors until it executes.
const LOCK_WAIT: Duration = Duration::from_secs(1);

/// Locks a directory against a second daemon.
fn lock(dir: &Path) -> Result<File, NodeError> {
    use rustix::fs::{FlockOperation, flock};
    use std::os::unix::fs::MetadataExt;
    let end = Instant::now() + LOCK_WAIT;
    loop {
        std::fs::create_dir_all(dir).map_err(|e| io(dir, e))?;
        let file = File::open(dir).map_err(|e| io(dir, e))?;
        let locked = flock(&file, FlockOperation::NonBlockingLockExclusive);
        let same = || Some(file.metadata().ok()?.ino() == std::fs::metadata(dir).ok()?.ino());
        match locked {
            // A daemon that was ending meanwhile may have removed it.
            Ok(()) if same() == Some(true) => return Ok(file),
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() > end => {
                return Err(io(dir, "a node is already running with it"));
            }
            Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(e) => return Err(io(dir, e)),
        }
    }
}

fn io(path: &Path, error: impl std::fmt::Display) -> NodeError {
    NodeError::step(Phase::Control, path.display().to_string(), error)
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), NodeError> {
    let draft = path.with_extension("draft");
    let written = File::create(&draft)
        .and_then(|mut file| file.write_all(bytes))
        .and_then(|()| std::fs::rename(&draft, path));
    written.map_err(|e| {
        let _ = std::fs::remove_file(&draft);
        io(path, e)
    })
}

fn read_all<T: DeserializeOwned>(dir: &Path) -> Vec<T> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let paths = entries.flatten().map(|entry| entry.path());
    let records = paths.filter(|path| path.extension().is_some_and(|e| e == "json"));
    // A record that does not parse is of no use to anybody.
    records.filter_map(|path| serde_json::from_slice(&std::fs::read(path).ok()?).ok()).collect()
}

impl Store {
    /// Makes the directories, and keeps other daemons away from them.
    ///
    /// # Errors
    /// One that runs has them, or they cannot be made.
    pub fn open(state: &Path, children: PathBuf) -> Result<Store, NodeError> {
        let beside_socket = lock(&children)?;
        let in_state = lock(state).inspect_err(|_| {
            // Ours, and nothing is in it yet.
            let _ = std::fs::remove_dir(&children);
        })?;
        let locks = Arc::new([beside_socket, in_state]);
        let (seeds, logs) = (state.join("seeds"), state.join("logs"));
        let store = Store { seeds, logs, children, _locks: locks };
        for dir in [&store.seeds, &store.logs] {
            std::fs::create_dir_all(dir).map_err(|e| io(dir, e))?;
        }
        Ok(store)
    }

    /// Writes a seed down.
    pub fn put_seed(&self, record: &SeedRecord, descriptor: &[u8]) -> Result<(), NodeError> {
        write(&self.seeds.join(format!("{}.descriptor", record.seed)), descriptor)?;
        self.update_seed(record)
    }

    /// Writes down what has changed about a seed.
    pub fn update_seed(&self, record: &SeedRecord) -> Result<(), NodeError> {
        let path = self.seeds.join(format!("{}.json", record.seed));
        write(&path, &serde_json::to_vec(record).map_err(|e| io(&path, e))?)
    }

    /// The record of one seed.
    pub fn seed(&self, id: SeedId) -> Option<SeedRecord> {
        let bytes = std::fs::read(self.seeds.join(format!("{id}.json"))).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// All seeds written down.
    pub fn seeds(&self) -> Vec<SeedRecord> {
        read_all(&self.seeds)
    }

    /// The descriptor of one.
    pub fn descriptor(&self, seed: &str) -> std::io::Result<Vec<u8>> {
        std::fs::read(self.seeds.join(format!("{seed}.descriptor")))
    }

    /// Nothing of it stays.
    pub fn drop_seed(&self, seed: SeedId) {
        if let Some(path) = self.seed(seed).and_then(|record| record.spool) {
            let _ = std::fs::remove_file(path);
        }
        let _ = std::fs::remove_file(self.seeds.join(format!("{seed}.json")));
        let _ = std::fs::remove_file(self.seeds.join(format!("{seed}.descriptor")));
    }

    /// Writes a child down.
    pub fn put_child(&self, start: &Start) -> Result<(), NodeError> {
        let path = self.children.join(format!("{}.json", start.id));
        let record = serde_json::to_vec(start).map_err(|e| io(&path, e))?;
        std::fs::write(&path, record).map_err(|e| {
            let _ = std::fs::remove_file(&path);
            io(&path, e)
        })
    }

    /// All children written down.
    pub fn children(&self) -> Vec<Start> {
        read_all(&self.children)
    }

    /// Nothing of it stays.
    pub fn drop_child(&self, start: &Start) {
        let _ = std::fs::remove_file(self.children.join(format!("{}.json", start.id)));
        // One log for all processes of a tree.
        if start.main.is_none() {
            let _ = std::fs::remove_file(&start.log);
        }
    }

    /// Path of the log of a child.
    pub fn log_path(&self, id: u64) -> PathBuf {
        self.logs.join(format!("{id}.log"))
    }

    /// A new log, for a child's standard output and error.
    pub fn create_log(&self, id: u64) -> Result<std::fs::File, NodeError> {
        let path = self.log_path(id);
        let mut options = std::fs::OpenOptions::new();
        options.create_new(true).append(true).open(&path).map_err(|e| io(&path, e))
    }

    /// Removes the directory of children when it is empty.
    pub fn close(&self) {
        let _ = std::fs::remove_dir(&self.children);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_written_down_is_read_again_and_then_gone() {
        let dir = std::env::temp_dir().join(format!("mitosis-store-{}", std::process::id()));
        let store = Store::open(&dir, dir.join("children")).unwrap();
        let id = SeedId([1, 2, 3, 4, 5, 6, 7, 8]);
        let record = SeedRecord {
            seed: id.to_string(),
            reference: "r".into(),
            name: None,
            parent_pid: 7,
            created_unix_ms: 1,
            expires_unix_ms: Some(2),
            shadow: Some((8, 99)),
            spool: None,
            tree: None,
            home: None,
            bound: false,
        };
        store.put_seed(&record, b"descriptor").unwrap();
        std::fs::write(dir.join("seeds/half.json"), b"{\"seed\"").unwrap();
        let found = store.seeds();
        let bytes = store.descriptor(&record.seed).unwrap();
        store.drop_seed(id);
        let left = store.seeds().len();
        std::fs::remove_dir_all(&dir).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].shadow, found[0].expires_unix_ms), (Some((8, 99)), Some(2)));
        assert_eq!(bytes, b"descriptor");
        assert_eq!(left, 0);
    }
}
