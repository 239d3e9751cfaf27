//! Which file has which bytes: BLAKE3 by (device, inode, size, ctime), computed off the fork path,
//! as long as the file system is mounted that has the device number.
//!
//! A child may map the file of its own node only when the bytes are the same as the parent's. That
//! is a matter of content, not of path, size or mtime. Hashing takes milliseconds, a fork may not:
//! so a fork only looks hashes up, and what is not known is hashed in the background for the next.

use crate::filesystems::{FileSystems, Gone};
use mitosis_descriptor::MappedFile;
use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

/// Most hashes kept.
const KNOWN_MAX: usize = 65_536;
/// Most files waiting to be hashed.
const QUEUE_MAX: usize = 4096;
/// A file changed so recently could change again within one tick of its ctime.
const SETTLED: Duration = Duration::from_millis(50);
/// Largest file and most bytes hashed ahead of any need, at start.
const WARM_FILE_BYTES_MAX: u64 = 32 << 20;
const WARM_BYTES_MAX: u64 = 512 << 20;

/// File systems whose files are interfaces of the kernel, by their numbers in linux/magic.h: proc,
/// sysfs, tracefs, debugfs, securityfs, bpf, cgroup, cgroup2, configfs, efivarfs.
const KERNELS: [u32; 10] = [
    0x9fa0,
    0x6265_6572,
    0x7472_6163,
    0x6462_6720,
    0x7363_6673,
    0xcafe_4a11,
    0x0027_e0eb,
    0x6367_7270,
    0x6265_6570,
    0xde5e_81e4,
];

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Key {
    dev: u64,
    ino: u64,
    size: u64,
    ctime_ns: i128,
}

impl Key {
    fn of(meta: &Metadata) -> Key {
        let ctime_ns = i128::from(meta.ctime()) * 1_000_000_000 + i128::from(meta.ctime_nsec());
        Key { dev: meta.dev(), ino: meta.ino(), size: meta.size(), ctime_ns }
    }

    fn settled(&self) -> bool {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        now.as_nanos() as i128 - self.ctime_ns > SETTLED.as_nanos() as i128
    }
}

struct State {
    filesystems: FileSystems,
    known: HashMap<Key, [u8; 32]>,
    queue: VecDeque<PathBuf>,
    queued: HashSet<PathBuf>,
    stop: bool,
}

impl State {
    /// The hash of the file that `key` was read of, before this.
    fn get(&mut self, key: &Key) -> Option<&[u8; 32]> {
        self.forget_gone();
        self.known.get(key)
    }

    /// Drops what is known of file systems whose device number may be another's now.
    fn forget_gone(&mut self) {
        match self.filesystems.gone() {
            Gone::These(gone) if gone.is_empty() => {}
            Gone::These(gone) => self.known.retain(|key, _| !gone.contains(&key.dev)),
            Gone::Any => self.known.clear(),
        }
    }
}

/// The cache and its one background thread.
pub(crate) struct Hashes {
    shared: Arc<(Mutex<State>, Condvar)>,
}

fn lock(shared: &(Mutex<State>, Condvar)) -> MutexGuard<'_, State> {
    shared.0.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hashes {
    /// An empty cache; the thread first hashes the files in `warm`, at the lowest priority.
    pub fn start(warm: Vec<PathBuf>) -> std::io::Result<Hashes> {
        let state = State {
            filesystems: FileSystems::new()?,
            known: HashMap::new(),
            queue: VecDeque::new(),
            queued: HashSet::new(),
            stop: false,
        };
        let shared = Arc::new((Mutex::new(state), Condvar::new()));
        let theirs = Arc::clone(&shared);
        std::thread::Builder::new().name("hashes".into()).spawn(move || work(&theirs, warm))?;
        Ok(Hashes { shared })
    }

    /// The hash of an open file: from the cache, or computed now.
    pub fn of_file(&self, file: &File) -> std::io::Result<[u8; 32]> {
        hash_file(&self.shared, file)
    }

    /// Whether the node's file at that path is known to have the bytes of `file`. Never hashes: an
    /// unknown file is queued and not proven this time.
    pub fn proven(&self, file: &MappedFile) -> bool {
        let Some(wanted) = file.hash else { return false };
        let path = Path::new(&file.path);
        let Ok(meta) = std::fs::metadata(path) else { return false };
        if !meta.is_file() || meta.len() != file.size {
            return false;
        }
        let mut state = lock(&self.shared);
        if let Some(found) = state.get(&Key::of(&meta)) {
            return *found == wanted;
        }
        if state.queue.len() < QUEUE_MAX && state.queued.insert(path.to_owned()) {
            state.queue.push_back(path.to_owned());
            self.shared.1.notify_all();
        }
        false
    }

    /// Whether an open file has the bytes of `file`, which was proven a moment ago. Hashes it now if what was
    /// known then has been forgotten, because a file system was unmounted meanwhile.
    pub fn proven_open(&self, open: &File, file: &MappedFile) -> bool {
        file.hash.is_some() && self.of_file(open).ok() == file.hash
    }
}

impl mitosis_restore::ProvenFiles for Hashes {
    fn is_elsewhere(&self, file: &MappedFile) -> bool {
        let of_a_machine = ["/tmp/", "/run/"];
        of_a_machine.iter().any(|place| file.path.starts_with(place))
            && std::fs::symlink_metadata(&file.path)
                .is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound)
    }

    fn proven(&self, file: &MappedFile) -> bool {
        Hashes::proven(self, file)
    }
}

impl Drop for Hashes {
    fn drop(&mut self) {
        lock(&self.shared).stop = true;
        self.shared.1.notify_all();
    }
}

fn hash_file(shared: &(Mutex<State>, Condvar), file: &File) -> std::io::Result<[u8; 32]> {
    let before = Key::of(&file.metadata()?);
    if let Some(known) = lock(shared).get(&before) {
        return Ok(*known);
    }
    // A descriptor of our own, so that its offset is ours.
    let mut own = File::open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file)))?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 256 << 10];
    // One byte more than there was: a file that grows all the time has an end, too.
    let mut bounded = own.by_ref().take(before.size.saturating_add(1));
    loop {
        match bounded.read(&mut buffer)? {
            0 => break,
            got => hasher.update(&buffer[..got]),
        };
    }
    let after = Key::of(&own.metadata()?);
    if before != after {
        return Err(std::io::Error::other("changed while it was hashed"));
    }
    let hash = *hasher.finalize().as_bytes();
    let mut state = lock(shared);
    // Before a watch begins: what ended earlier had the number earlier.
    state.forget_gone();
    let room = before.settled() && state.known.len() < KNOWN_MAX;
    if room && state.filesystems.watch(file, before.dev) {
        state.known.insert(before, hash);
    }
    Ok(hash)
}

fn hash_path(shared: &(Mutex<State>, Condvar), path: &Path, bytes_max: u64) -> u64 {
    // No O_NOFOLLOW: a path means here what it means to the child. NONBLOCK: a FIFO must not hang.
    let flags =
        rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC | rustix::fs::OFlags::NONBLOCK;
    let Ok(fd) = rustix::fs::open(path, flags, rustix::fs::Mode::empty()) else { return 0 };
    let file = File::from(fd);
    match file.metadata() {
        // What cannot be hashed stays unproven, which is always right.
        Ok(meta) if meta.is_file() && meta.len() <= bytes_max && !is_kernels(&file) => {
            hash_file(shared, &file).map_or(0, |_| meta.len())
        }
        _ => 0,
    }
}

/// Whether a file is an interface of the kernel. Another node's descriptor can name any path, and
/// reading such a file may take something away, or wait (/proc/kmsg does both), or never be over.
fn is_kernels(file: &File) -> bool {
    rustix::fs::fstatfs(file).is_ok_and(|fs| KERNELS.contains(&(fs.f_type as u32)))
}

fn work(shared: &(Mutex<State>, Condvar), warm: Vec<PathBuf>) {
    // Lowest priority, this thread only: forks go first.
    let _ = rustix::process::nice(19);
    let mut warm = warm.into_iter();
    let mut warmed = 0;
    loop {
        let mut state = lock(shared);
        if state.stop {
            return;
        }
        if let Some(path) = state.queue.pop_front() {
            drop(state);
            hash_path(shared, &path, u64::MAX);
            lock(shared).queued.remove(&path);
        } else if let Some(path) = warm.next().filter(|_| warmed < WARM_BYTES_MAX) {
            drop(state);
            warmed += hash_path(shared, &path, WARM_FILE_BYTES_MAX);
        } else {
            drop(shared.1.wait(state).unwrap_or_else(PoisonError::into_inner));
        }
    }
}

/// The files that almost every process maps: interpreters and shared libraries of the machine.
pub(crate) fn usual_files() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut add = |dir: &str, wanted: &dyn Fn(&str) -> bool| {
        let Ok(entries) = std::fs::read_dir(dir) else { return };
        for entry in entries.flatten() {
            if entry.file_name().to_str().is_some_and(wanted) {
                found.push(entry.path());
            }
        }
    };
    let library = |name: &str| name.contains(".so");
    add("/usr/bin", &|name| name.starts_with("python3"));
    add("/usr/local/bin", &|name| name.starts_with("python3"));
    for minor in 8..20 {
        add(&format!("/usr/lib/python3.{minor}/lib-dynload"), &library);
        add(&format!("/usr/local/lib/python3.{minor}/lib-dynload"), &library);
    }
    add("/usr/lib/locale", &|name| name.starts_with("locale-archive"));
    add("/usr/lib/locale/C.utf8", &|_| true);
    for dir in ["/usr/lib/x86_64-linux-gnu/gconv", "/usr/lib64/gconv"] {
        add(dir, &|name| name == "gconv-modules.cache");
    }
    for dir in ["/lib64", "/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/local/lib"] {
        add(dir, &library);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str, bytes: &[u8]) -> PathBuf {
        let path = std::env::temp_dir().join(format!("mitosis-hash-{name}-{}", std::process::id()));
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn wait_until(mut done: impl FnMut() -> bool) -> bool {
        (0..500).any(|_| {
            std::thread::sleep(Duration::from_millis(10));
            done()
        })
    }

    #[test]
    fn a_fork_never_hashes_but_the_next_one_knows() {
        let path = scratch("later", b"some bytes");
        std::thread::sleep(2 * SETTLED);
        let hashes = Hashes::start(Vec::new()).unwrap();
        let mapped = MappedFile {
            path: path.to_str().unwrap().to_owned(),
            size: 10,
            hash: Some(*blake3::hash(b"some bytes").as_bytes()),
        };
        assert!(!hashes.proven(&mapped));
        assert!(wait_until(|| hashes.proven(&mapped)));
        let other = MappedFile { hash: Some([7; 32]), ..mapped.clone() };
        assert!(!hashes.proven(&other));
        // Same path, size and mtime, one byte different: not the same file.
        let mtime = std::fs::metadata(&path).unwrap().modified().unwrap();
        std::fs::write(&path, b"some bytez").unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        file.set_modified(mtime).unwrap();
        let changed = hashes.proven(&mapped);
        std::fs::remove_file(&path).unwrap();
        assert!(!changed);
        assert!(!hashes.proven(&mapped));
    }

    /// A descriptor from another node may name them. The kernel's log waits for its next line.
    #[test]
    fn files_of_the_kernel_are_not_read() {
        let hashes = Hashes::start(Vec::new()).unwrap();
        let mapped = |path: &Path, size| MappedFile {
            path: path.to_str().unwrap().to_owned(),
            size,
            hash: Some(*blake3::hash(b"").as_bytes()),
        };
        let names = ["/proc/kmsg", "/proc/kcore", "/proc/version"].map(Path::new);
        for name in names {
            let size = std::fs::metadata(name).map_or(0, |meta| meta.len());
            assert!(!hashes.proven(&mapped(name, size)), "{}", name.display());
        }
        // All that was asked for before has been looked at when this one is known.
        let path = scratch("after", b"");
        std::thread::sleep(2 * SETTLED);
        let known = wait_until(|| hashes.proven(&mapped(&path, 0)));
        std::fs::remove_file(&path).unwrap();
        assert!(known, "a file of the kernel holds up the others");
        for name in names {
            assert!(!hashes.proven(&mapped(name, 0)), "{}", name.display());
        }
    }

    #[test]
    fn what_is_forgotten_between_plan_and_build_is_proven_anew() {
        let path = scratch("forgotten", b"some bytes");
        std::thread::sleep(2 * SETTLED);
        let hashes = Hashes::start(Vec::new()).unwrap();
        let hash = Some(*blake3::hash(b"some bytes").as_bytes());
        let mapped = MappedFile { path: path.to_str().unwrap().to_owned(), size: 10, hash };
        let known = wait_until(|| hashes.proven(&mapped));
        // As where some file system was unmounted and it cannot be told which.
        lock(&hashes.shared).known.clear();
        let file = File::open(&path).unwrap();
        let same = hashes.proven_open(&file, &mapped);
        std::fs::write(&path, b"some bytez").unwrap();
        let changed = hashes.proven_open(&file, &mapped);
        std::fs::remove_file(&path).unwrap();
        assert!(known && same && !changed);
    }

    #[test]
    fn a_file_of_unknown_hash_is_never_proven() {
        let hashes = Hashes::start(Vec::new()).unwrap();
        assert!(!hashes.proven(&MappedFile { path: "/etc/passwd".into(), size: 1, hash: None }));
    }

    #[test]
    fn an_open_file_is_hashed_now() {
        let path = scratch("now", b"abc");
        let hashes = Hashes::start(Vec::new()).unwrap();
        let hash = hashes.of_file(&File::open(&path).unwrap());
        std::fs::remove_file(&path).unwrap();
        assert_eq!(hash.unwrap(), *blake3::hash(b"abc").as_bytes());
    }

    /// A file system of one file in an image, at a directory of its own.
    struct Mounted(PathBuf);

    impl Drop for Mounted {
        fn drop(&mut self) {
            run("umount", &[&self.0]);
        }
    }

    fn run(program: &str, args: &[&Path]) {
        let done = std::process::Command::new(program).args(args).output().unwrap();
        assert!(done.status.success(), "{program}: {}", String::from_utf8_lossy(&done.stderr));
    }

    /// Two images that differ in the bytes of a file only, mounted in turn: the kernel gives them
    /// the same device number, and the file the same inode number, size and ctime.
    #[test]
    fn a_file_system_in_the_place_of_another_is_not_it() {
        let dir = std::env::temp_dir().join(format!("mitosis-images-{}", std::process::id()));
        let (tree, at) = (dir.join("tree"), dir.join("at"));
        std::fs::create_dir_all(&tree).unwrap();
        std::fs::create_dir_all(&at).unwrap();
        std::fs::write(tree.join("file"), "of the first image").unwrap();
        let images = [dir.join("first"), dir.join("second")];
        let words = ["-q", "-t", "ext2", "-d"].map(Path::new);
        run("mke2fs", &[&words[..], &[&tree, &images[0], Path::new("256k")]].concat());
        let mut bytes = std::fs::read(&images[0]).unwrap();
        let name = b"of the first image";
        let place = bytes.windows(name.len()).position(|part| part == name).unwrap();
        bytes[place..place + name.len()].copy_from_slice(b"of the other image");
        std::fs::write(&images[1], bytes).unwrap();
        std::thread::sleep(2 * SETTLED);
        let hashes = Hashes::start(Vec::new()).unwrap();
        let mount = |image: &Path| {
            run("mount", &[Path::new("-oloop,ro"), image, &at]);
            Mounted(at.clone())
        };
        let (mut keys, mut found) = (Vec::new(), Vec::new());
        // Until the second gets the loop device of the first: others use such devices, too.
        for _ in 0..20 {
            (keys, found) = (Vec::new(), Vec::new());
            for image in &images {
                let _mounted = mount(image);
                let file = File::open(at.join("file")).unwrap();
                keys.push(Key::of(&file.metadata().unwrap()));
                found.push(hashes.of_file(&file).unwrap());
                // Known while it is mounted, by each path that leads to it.
                let known = lock(&hashes.shared).get(&keys[keys.len() - 1]).copied();
                assert_eq!(known, found.last().copied());
            }
            if keys[0] == keys[1] {
                break;
            }
        }
        std::fs::remove_dir_all(&dir).unwrap();
        assert_eq!(keys[0], keys[1]);
        let wanted = ["of the first image", "of the other image"];
        assert_eq!(found, wanted.map(|text| *blake3::hash(text.as_bytes()).as_bytes()));
    }
}
