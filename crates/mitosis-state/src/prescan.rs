//! Most of the look at open files is taken before the parent is stopped; during the stop it is
//! only confirmed that nothing has changed since.
//!
//! A readlink and a read of an already open fdinfo cost about 3 us a descriptor; the full look
//! costs 20 to 40.

use crate::scan::{duplicate, scan};
use crate::{Group, StateError, kinds, shm};
use mitosis_descriptor::OpenFile;
use mitosis_sys::SysError;
use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::time::Duration;

/// What the open files of a running process looked like a moment ago.
#[derive(Debug)]
pub struct Prescan {
    pid: i32,
    content_max: u64,
    links: OwnedFd,
    entries: Vec<Entry>,
    /// Pipes and sockets that had nothing queued.
    probes: Vec<OwnedFd>,
    files: Vec<OpenFile>,
    /// Something was queued: the content must be taken during the stop.
    volatile: bool,
}

#[derive(Debug)]
struct Entry {
    number: String,
    link: Vec<u8>,
    info: File,
    text: Vec<u8>,
}

/// Longer fdinfo (epolls with hundreds of registrations) is not worth confirming.
const INFO_BYTES_MAX: usize = 4096;

/// Most descriptors that are confirmed: each is an open file of this node's meanwhile.
const ENTRIES_MAX: usize = 8192;

/// How often a process is looked at that changes its open files all the time.
const TRIES: usize = 4;
/// Between two such looks.
const PAUSE: Duration = Duration::from_millis(1);

impl Prescan {
    /// Looks at a running process. Of a file without a path at most `content_max` bytes are taken
    /// along. A busy process closes files between two looks at them: then it is looked at again, and
    /// if it is always so, what counts is seen in the stop.
    ///
    /// # Errors
    /// [`StateError::Refused`] for what cannot be carried, before anything has been touched.
    pub fn take(pid: i32, content_max: u64) -> Result<Prescan, StateError> {
        let mut refused: Vec<StateError> = Vec::new();
        for _ in 0..TRIES {
            match Prescan::look(pid, content_max, true) {
                Ok(prescan) => return Ok(prescan),
                Err(error @ StateError::Refused { .. }) => refused.push(error),
                Err(_) => {}
            }
            std::thread::sleep(PAUSE);
        }
        // What was closed meanwhile is not met each time, or only with the error of a call.
        let said = refused.last().map(StateError::to_string).unwrap_or_default();
        let same = |error: &StateError| error.to_string() == said;
        let always = refused.len() == TRIES && refused.iter().all(same);
        match refused.pop().filter(|_| always && !said.contains("(os error ")) {
            Some(last) => Err(last),
            None => Prescan::look(pid, content_max, false),
        }
    }

    fn look(pid: i32, content_max: u64, closely: bool) -> Result<Prescan, StateError> {
        let fail = |call, e: rustix::io::Errno| StateError::Sys {
            fd: u32::MAX,
            source: SysError::io(call, pid, e),
        };
        let path = format!("/proc/{pid}/fd");
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let links =
            rustix::fs::open(path, flags, Mode::empty()).map_err(|e| fail("open /proc/fd", e))?;
        let groups = if closely { scan(pid)? } else { Vec::new() };
        let files = kinds::capture(pid, &groups, false, content_max)?;
        let mut prescan = Prescan {
            pid,
            content_max,
            links,
            entries: Vec::new(),
            probes: Vec::new(),
            files,
            volatile: !closely,
        };
        let pidfd = crate::look::pidfd_of(pid)?;
        if groups.iter().map(|group| group.fds.len()).sum::<usize>() > ENTRIES_MAX {
            prescan.volatile = true;
            return Ok(prescan);
        }
        for group in &groups {
            prescan.add(group);
            prescan.probe(group, &pidfd);
        }
        // The kernel lists them in ascending order.
        prescan.entries.sort_by_key(|e| e.number.parse::<u32>().unwrap_or(0));
        Ok(prescan)
    }

    fn add(&mut self, group: &Group) {
        for fd in &group.fds {
            let path = format!("/proc/{}/fdinfo/{}", self.pid, fd.number);
            let text = File::open(path).and_then(|info| Ok((read_info(&info)?, info)));
            match text {
                Ok((text, info)) if text.len() < INFO_BYTES_MAX => {
                    let (number, link) = (fd.number.to_string(), group.link.clone().into_bytes());
                    self.entries.push(Entry { number, link, info, text });
                }
                _ => self.volatile = true,
            }
        }
    }

    fn probe(&mut self, group: &Group, pidfd: &OwnedFd) {
        let file = format!("/proc/{}/fd/{}", self.pid, group.first());
        let machine = shm::is_named(&group.link) || shm::is_huge(&file);
        if machine || group.link.ends_with(" (deleted)") || kinds::mqueue::is_queue(self.pid, group)
        {
            // Its content goes along, and nothing tells cheaply that it is what it was.
            self.volatile = true;
        }
        let eventfd = group.link == "anon_inode:[eventfd]";
        if eventfd && group.info_field(kinds::eventfd::SEMAPHORE).is_none() {
            // Found out in the stop.
            self.volatile = true;
        }
        if !group.link.starts_with("pipe:") && !group.link.starts_with("socket:") {
            return;
        }
        match duplicate(pidfd.as_fd(), group.first()) {
            Ok(fd) => match rustix::io::ioctl_fionread(&fd) {
                Ok(0) => self.probes.push(fd),
                Ok(_) => self.volatile = true,
                Err(_) => {} // A listening socket has no queue of bytes.
            },
            Err(_) => self.volatile = true,
        }
    }

    /// The open files of the process, which now is stopped.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn confirm(self) -> Result<Vec<OpenFile>, StateError> {
        if !self.volatile && self.unchanged() {
            return Ok(self.files);
        }
        let Prescan { pid, content_max, probes, .. } = self;
        // What the process has closed since is closed only when they are: an epoll would go on to
        // watch it.
        drop(probes);
        kinds::capture(pid, &scan(pid)?, true, content_max)
    }

    fn unchanged(&self) -> bool {
        self.same_numbers()
            && self.entries.iter().all(|entry| {
                let mut buffer = [0u8; 512];
                let link =
                    rustix::fs::readlinkat_raw(&self.links, entry.number.as_str(), &mut buffer[..]);
                link.is_ok_and(|len| buffer[..len] == *entry.link)
                    && read_info(&entry.info).is_ok_and(|text| text == entry.text)
            })
            && self.probes.iter().all(|fd| rustix::io::ioctl_fionread(fd) == Ok(0))
    }

    fn same_numbers(&self) -> bool {
        let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
        let mut listing = rustix::fs::RawDir::new(&self.links, &mut buffer[..]);
        let mut expected = self.entries.iter();
        while let Some(entry) = listing.next() {
            let Ok(entry) = entry else { return false };
            let name = entry.file_name().to_bytes();
            if name.first().is_some_and(u8::is_ascii_digit)
                && expected.next().is_none_or(|e| e.number.as_bytes() != name)
            {
                return false;
            }
        }
        expected.next().is_none()
    }
}

fn read_info(info: &File) -> std::io::Result<Vec<u8>> {
    let mut text = vec![0u8; INFO_BYTES_MAX];
    let got = info.read_at(&mut text, 0)?;
    text.truncate(got);
    Ok(text)
}
