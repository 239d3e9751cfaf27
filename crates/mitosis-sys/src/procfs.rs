//! What `/proc/PID` says, parsed (proc(5)).

use crate::SysError;
use std::fs;

fn read(path: &str) -> Result<String, SysError> {
    // Paths and names in there need not be UTF-8.
    fs::read(path)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .map_err(|e| SysError::io("read", path, e))
}

/// A line of `/proc/PID/smaps` with its VmFlags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
    /// `rwxp` as text.
    pub perms: [u8; 4],
    /// Offset in the file.
    pub offset: u64,
    /// Device as `MAJ:MIN`.
    pub dev: String,
    /// Inode; 0 for anonymous memory.
    pub inode: u64,
    /// Path or `[name]`; empty for anonymous memory.
    pub name: String,
    /// Two-letter flags.
    pub flags: Vec<[u8; 2]>,
    /// Protection key (pkeys(7)), 0 for the usual one.
    pub protection_key: u32,
}

impl Mapping {
    /// Whether VmFlags has the two letters.
    pub fn has(&self, flag: &[u8; 2]) -> bool {
        self.flags.contains(flag)
    }
}

/// Parses `/proc/PID/smaps`.
///
/// # Errors
/// The file cannot be read or is not what proc(5) says.
pub fn mappings(pid: i32) -> Result<Vec<Mapping>, SysError> {
    let path = format!("/proc/{pid}/smaps");
    parse_mappings(&read(&path)?).ok_or_else(|| SysError::Unexpected(format!("{path}: malformed")))
}

fn parse_mappings(text: &str) -> Option<Vec<Mapping>> {
    let mut out: Vec<Mapping> = Vec::new();
    for line in text.lines() {
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            let flags = flags.split_whitespace().filter_map(|f| f.as_bytes().try_into().ok());
            out.last_mut()?.flags = flags.collect();
        } else if let Some(key) = line.strip_prefix("ProtectionKey:") {
            out.last_mut()?.protection_key = key.trim().parse().ok()?;
        } else if line
            .as_bytes()
            .first()
            .is_some_and(|c| c.is_ascii_digit() || c.is_ascii_lowercase())
        {
            out.push(parse_mapping(line)?);
        }
    }
    Some(out)
}

fn parse_mapping(line: &str) -> Option<Mapping> {
    let mut rest = line;
    let mut field = || {
        let text = rest.trim_start_matches(' ');
        let (head, tail) = text.split_once(' ').unwrap_or((text, ""));
        rest = tail;
        head
    };
    let (start, end) = field().split_once('-')?;
    let perms = field().as_bytes().try_into().ok()?;
    let offset = u64::from_str_radix(field(), 16).ok()?;
    let dev = field().to_owned();
    let inode = field().parse().ok()?;
    Some(Mapping {
        start: u64::from_str_radix(start, 16).ok()?,
        end: u64::from_str_radix(end, 16).ok()?,
        perms,
        offset,
        dev,
        inode,
        name: unescape(rest.trim_start_matches(' ')),
        flags: Vec::new(),
        protection_key: 0,
    })
}

/// The kernel writes newlines in paths as `\012`.
fn unescape(name: &str) -> String {
    name.replace("\\012", "\n")
}

/// Parses the first lines of `/proc/PID/maps`: the ranges and names only (cheaper than smaps).
///
/// # Errors
/// As [`mappings`].
pub fn ranges(pid: i32) -> Result<Vec<Mapping>, SysError> {
    let path = format!("/proc/{pid}/maps");
    read(&path)?
        .lines()
        .map(parse_mapping)
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| SysError::Unexpected(format!("{path}: malformed")))
}

/// The bytes of a process's vdso; empty when it has none.
///
/// # Errors
/// EPERM, ENOENT.
pub fn vdso(pid: i32) -> Result<Vec<u8>, SysError> {
    use std::os::unix::fs::FileExt;
    let path = format!("/proc/{pid}/mem");
    let mem = fs::File::open(&path).map_err(|e| SysError::io("open", &path, e))?;
    let ranges = ranges(pid)?;
    let Some(vdso) = ranges.iter().find(|m| m.name == "[vdso]") else { return Ok(Vec::new()) };
    let mut image = vec![0u8; (vdso.end - vdso.start) as usize];
    mem.read_exact_at(&mut image, vdso.start).map_err(|e| SysError::io("read", "vdso", e))?;
    Ok(image)
}

/// `/proc/PID/status` as it is, with look-ups.
#[derive(Clone, Debug)]
pub struct Status(String);

impl Status {
    /// Reads it.
    ///
    /// # Errors
    /// ENOENT when there is no such process.
    pub fn read(pid: i32) -> Result<Status, SysError> {
        read(&format!("/proc/{pid}/status")).map(Status)
    }
    /// Reads it for a thread.
    ///
    /// # Errors
    /// ENOENT when there is no such thread.
    pub fn of_thread(pid: i32, tid: i32) -> Result<Status, SysError> {
        read(&format!("/proc/{pid}/task/{tid}/status")).map(Status)
    }
    /// The id in the innermost pid namespace, its own; `None` on a kernel that does not tell.
    pub fn inner_id(&self) -> Option<i32> {
        self.numbers("NSpid", 10).last().map(|id| *id as i32)
    }
    /// The text after `key:`, trimmed; empty when there is no such line.
    pub fn field(&self, key: &str) -> &str {
        self.0
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))
            .map_or("", str::trim)
    }
    /// The numbers after `key:`, in base `radix`.
    pub fn numbers(&self, key: &str, radix: u32) -> Vec<u64> {
        let parse = |word| u64::from_str_radix(word, radix).ok();
        self.field(key).split_whitespace().filter_map(parse).collect()
    }
    /// The first number after `key:`, or 0.
    pub fn number(&self, key: &str, radix: u32) -> u64 {
        self.numbers(key, radix).first().copied().unwrap_or(0)
    }
}

/// Fields of `/proc/PID/stat` from the third on: index 0 is the state letter (field 3).
///
/// # Errors
/// ENOENT when there is no such process.
pub fn stat(pid: i32) -> Result<Vec<String>, SysError> {
    let text = read(&format!("/proc/{pid}/stat"))?;
    let rest = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    Ok(rest.split_whitespace().map(str::to_owned).collect())
}

/// Field `number` of proc(5)'s table of `/proc/PID/stat` (3 and above) as a number.
pub fn stat_field(fields: &[String], number: usize) -> u64 {
    fields.get(number - 3).and_then(|f| f.parse().ok()).unwrap_or(0)
}

/// Thread ids of a process.
///
/// # Errors
/// ENOENT when there is no such process.
pub fn threads(pid: i32) -> Result<Vec<i32>, SysError> {
    numbers_in(&format!("/proc/{pid}/task"))
}

/// Open descriptors of a process.
///
/// # Errors
/// ENOENT, EACCES.
pub fn descriptors(pid: i32) -> Result<Vec<i32>, SysError> {
    numbers_in(&format!("/proc/{pid}/fd"))
}

fn numbers_in(path: &str) -> Result<Vec<i32>, SysError> {
    let entries = fs::read_dir(path).map_err(|e| SysError::io("readdir", path, e))?;
    let mut out: Vec<i32> =
        entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    out.sort_unstable();
    Ok(out)
}

/// Target of a symbolic link below `/proc/PID`, as text.
///
/// # Errors
/// ENOENT, EACCES.
pub fn link(pid: i32, name: &str) -> Result<String, SysError> {
    let path = format!("/proc/{pid}/{name}");
    fs::read_link(&path)
        .map(|p| p.to_string_lossy().into_owned())
        .map_err(|e| SysError::io("readlink", path, e))
}

/// A small file below `/proc/PID`, as text.
///
/// # Errors
/// ENOENT, EACCES.
pub fn text(pid: i32, name: &str) -> Result<String, SysError> {
    read(&format!("/proc/{pid}/{name}"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn our_own_mappings_parse() {
        let all = super::mappings(std::process::id() as i32).expect("smaps");
        assert!(all.iter().any(|m| m.name == "[stack]" && m.has(b"gd")));
        assert!(all.iter().any(|m| m.name == "[vdso]"));
        assert!(all.windows(2).all(|w| w[0].end <= w[1].start));
    }
}
