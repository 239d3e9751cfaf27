//! A descriptor for people, without its secrets.

use crate::error::NodeError;
use mitosis_descriptor::{Backing, Descriptor, MappedFile, PAGE_SIZE};
use mitosis_restore::{NodeFacts, ProvenFiles, Request};
use serde::Serialize;
use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

/// What a descriptor says.
#[derive(Clone, Debug, Serialize)]
pub struct View {
    /// Size of the encoded descriptor.
    pub descriptor_bytes: usize,
    /// Node it was taken on.
    pub node: String,
    /// When, in milliseconds since 1970.
    pub taken_unix_ms: u64,
    /// Kernel there.
    pub kernel: String,
    /// Process id of the parent, in its own namespace.
    pub pid: i32,
    /// Its executable.
    pub exe: String,
    /// Its current directory.
    pub cwd: String,
    /// Its user and group ids (real).
    pub uid_gid: (u32, u32),
    /// How many ranges of user and group ids its user namespace has, if that is not its node's.
    pub id_ranges: Option<(usize, usize)>,
    /// Threads: id and name.
    pub threads: Vec<(i32, String)>,
    /// Mappings.
    pub vmas: Vec<VmaView>,
    /// Open files.
    pub files: Vec<String>,
    /// Owners of pages, with the number of pages of each.
    pub owners: Vec<OwnerView>,
    /// Pages that hold data.
    pub pages_total: u64,
    /// Runs that they lie in.
    pub runs: usize,
    /// `CLOCK_MONOTONIC` when it stood still, in nanoseconds, and by how much it was ahead of its
    /// node's.
    pub monotonic: (i64, i64),
    /// Each thread waited in a system call.
    pub idle: bool,
    /// Functions that hooks may call.
    pub functions: Vec<String>,
}

/// A mapping.
#[derive(Clone, Debug, Serialize)]
pub struct VmaView {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
    /// `rwx`.
    pub prot: String,
    /// What is behind it.
    pub backing: String,
    /// Pages of it that hold data of the parent's own.
    pub pages: u64,
}

/// An owner of pages. Has no secret.
#[derive(Clone, Debug, Serialize)]
pub struct OwnerView {
    /// `HOST:PORT`.
    pub address: String,
    /// Public id of the seed.
    pub seed: String,
    /// Pages that it owns.
    pub pages: u64,
}

fn prot(bits: u8) -> String {
    let letter = |bit: u8, letter: char| if bits & bit != 0 { letter } else { '-' };
    [letter(1, 'r'), letter(2, 'w'), letter(4, 'x')].iter().collect()
}

fn backing(descriptor: &Descriptor, backing: Backing) -> String {
    match backing {
        Backing::Anonymous => "anonymous".into(),
        Backing::Vdso => "[vdso]".into(),
        Backing::Vvar => "[vvar]".into(),
        Backing::VvarVclock => "[vvar_vclock]".into(),
        Backing::File { file, offset } => match descriptor.files.get(file as usize) {
            Some(file) if file.hash.is_some() => format!("{} at {offset:#x}", file.path),
            Some(file) => format!("{} at {offset:#x} (content unknown)", file.path),
            None => format!("file {file}?"),
        },
        Backing::Shared { object, offset } => {
            let name = descriptor.shared.get(object as usize).map_or("?", |o| o.name.as_str());
            format!("shared memory {object} ({name}) at {offset:#x}")
        }
    }
}

impl View {
    /// What `descriptor`, of that encoded size, says.
    pub fn of(descriptor: &Descriptor, descriptor_bytes: usize) -> View {
        let mut owned: HashMap<u16, u64> = HashMap::new();
        for run in descriptor.pages.runs() {
            *owned.entry(run.owner).or_default() += u64::from(run.count);
        }
        let vma = |vma: &mitosis_descriptor::Vma| VmaView {
            start: vma.start,
            end: vma.end,
            prot: prot(vma.prot),
            backing: backing(descriptor, vma.backing),
            pages: descriptor
                .pages
                .within(
                    mitosis_descriptor::Vpn::of(vma.start),
                    mitosis_descriptor::Vpn::of(vma.end),
                )
                .map(|run| u64::from(run.count))
                .sum(),
        };
        let owner = |(n, owner): (usize, &mitosis_descriptor::Owner)| OwnerView {
            address: owner.address.clone(),
            seed: owner.seed.to_string(),
            pages: owned.get(&(n as u16)).copied().unwrap_or(0),
        };
        let thread = |thread: &mitosis_descriptor::Thread| {
            (thread.tid, String::from_utf8_lossy(&thread.name).into_owned())
        };
        let file = |file: &mitosis_descriptor::OpenFile| {
            mitosis_state::describe(file).unwrap_or_else(|e| e.to_string())
        };
        let (origin, process) = (&descriptor.origin, &descriptor.process);
        View {
            descriptor_bytes,
            node: origin.node.clone(),
            taken_unix_ms: origin.taken_unix_ms,
            kernel: origin.kernel.clone(),
            pid: process.pid,
            exe: process.exe.clone(),
            cwd: process.cwd.clone(),
            uid_gid: (process.creds.uids[0], process.creds.gids[0]),
            id_ranges: descriptor
                .rare
                .user_namespace
                .as_ref()
                .map(|space| (space.uids.len(), space.gids.len())),
            threads: descriptor.threads.iter().map(thread).collect(),
            vmas: descriptor.vmas.iter().map(vma).collect(),
            files: descriptor.open_files.iter().map(file).collect(),
            owners: descriptor.owners.iter().enumerate().map(owner).collect(),
            pages_total: descriptor.pages.pages(),
            runs: descriptor.pages.runs().len(),
            monotonic: (descriptor.clocks.monotonic, descriptor.clocks.monotonic_shift),
            idle: descriptor.hooks.idle,
            functions: descriptor.hooks.functions.iter().map(|f| f.name.clone()).collect(),
        }
    }
}

impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kib = self.pages_total * PAGE_SIZE / 1024;
        writeln!(f, "process   {} {} (cwd {})", self.pid, self.exe, self.cwd)?;
        writeln!(f, "taken     on node {}, Linux {}", self.node, self.kernel)?;
        writeln!(f, "user      {}:{}", self.uid_gid.0, self.uid_gid.1)?;
        if let Some((uids, gids)) = self.id_ranges {
            writeln!(f, "inside    a user namespace, ranges of ids: {uids} user, {gids} group")?;
        }
        writeln!(f, "size      {} bytes of descriptor", self.descriptor_bytes)?;
        writeln!(f, "pages     {} ({kib} KiB) in {} runs", self.pages_total, self.runs)?;
        let (clock, ahead) = (self.monotonic.0 as f64 / 1e9, self.monotonic.1 as f64 / 1e9);
        writeln!(f, "clock     {clock:.3} s, ahead of its node's by {ahead:.3} s")?;
        let how = if self.idle { "idle" } else { "busy" };
        writeln!(f, "hooks     {how}, {} functions", self.functions.len())?;
        for owner in &self.owners {
            writeln!(f, "owner     {}/{}: {} pages", owner.address, owner.seed, owner.pages)?;
        }
        for (tid, name) in &self.threads {
            writeln!(f, "thread    {tid} {name}")?;
        }
        for file in &self.files {
            writeln!(f, "open      {file}")?;
        }
        for vma in &self.vmas {
            let VmaView { start, end, prot, backing, pages } = vma;
            writeln!(f, "vma       {start:012x}-{end:012x} {prot} {pages:6} pages  {backing}")?;
        }
        Ok(())
    }
}

/// Files as they are at this moment: hashed now, since nobody waits for a child.
struct HashedNow;

impl ProvenFiles for HashedNow {
    fn proven(&self, file: &MappedFile) -> bool {
        let Some(wanted) = file.hash else { return false };
        let meta = std::fs::metadata(&file.path);
        if !meta.is_ok_and(|meta| meta.is_file() && meta.len() == file.size) {
            return false;
        }
        let mut hasher = blake3::Hasher::new();
        let read = std::fs::File::open(&file.path)
            .and_then(|mut file| std::io::copy(&mut file, &mut hasher));
        read.is_ok() && *hasher.finalize().as_bytes() == wanted
    }
}

/// How long the seed's node may take to give its vdso.
const VDSO_TIMEOUT: Duration = Duration::from_secs(5);

/// What restore would do with a descriptor on this machine, as text. If the parent's kernel has
/// another vdso, the seed's node is asked for it.
///
/// # Errors
/// It cannot be restored here; says why.
pub fn plan(descriptor: &Descriptor) -> Result<String, NodeError> {
    let facts = NodeFacts::read()?;
    let vdso = match (mitosis_restore::vdso_differs(descriptor, &facts), descriptor.owners.first())
    {
        (true, Some(seed)) => {
            let nodes = mitosis_transport::ControlClient::new();
            Some(nodes.vdso(&seed.address, seed.seed, &seed.secret, VDSO_TIMEOUT)?.into())
        }
        _ => None,
    };
    let request = Request { vdso, ..Request::default() };
    let plan = mitosis_restore::plan(descriptor, &facts, &request, &HashedNow)?;
    Ok(plan.to_string())
}
