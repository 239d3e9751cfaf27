//! Which file systems are still the ones that were seen, by their device numbers.
//!
//! A device number names a file system only while that is mounted: a loop device, and the number of
//! a container's overlay, are given to the next one. Two images that were built alike have the same
//! inode numbers and times, too. The kernel tells of an end: a watch of inotify(7) on one file of a
//! file system is ended when that is shut down, before its number is free, in whichever namespaces it
//! was mounted. Unlike an open file, a watch keeps nobody from unmounting.

use rustix::fs::inotify::{CreateFlags, ReadFlags, Reader, WatchFlags, add_watch, init};
use rustix::io::Errno;
use std::collections::HashMap;
use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};

/// What has ended since it was asked last.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Gone {
    /// The file systems with these numbers, or only the file in them that was watched.
    These(Vec<u64>),
    /// Events were lost: any of them.
    Any,
}

/// The file systems that are watched.
#[derive(Debug)]
pub(crate) struct FileSystems {
    events: OwnedFd,
    by_watch: HashMap<i32, u64>,
    by_device: HashMap<u64, i32>,
}

impl FileSystems {
    /// None yet.
    pub fn new() -> std::io::Result<FileSystems> {
        let events = init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        Ok(FileSystems { events, by_watch: HashMap::new(), by_device: HashMap::new() })
    }

    /// Watches the file system of an open file, whose device number is `device`. False: cannot be.
    pub fn watch(&mut self, file: &File, device: u64) -> bool {
        if self.by_device.contains_key(&device) {
            return true;
        }
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        // What is watched for matters little: the end of the watch is told in any case.
        let Ok(watch) = add_watch(&self.events, path, WatchFlags::DELETE_SELF) else {
            return false;
        };
        self.by_device.insert(device, watch);
        self.by_watch.insert(watch, device);
        true
    }

    /// What has ended. A number that was read before this was called, and is not among them, is that
    /// of the file system that was watched.
    pub fn gone(&mut self) -> Gone {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = Reader::new(&self.events, &mut buffer);
        let mut these = Vec::new();
        loop {
            match reader.next() {
                Ok(event) if event.events().contains(ReadFlags::QUEUE_OVERFLOW) => break,
                // The last of each watch. Before it comes why, which does not matter.
                Ok(event) if event.events().contains(ReadFlags::IGNORED) => {
                    if let Some(device) = self.by_watch.remove(&event.wd()) {
                        self.by_device.remove(&device);
                        these.push(device);
                    }
                }
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Gone::These(these),
                Err(_) => break,
            }
        }
        self.by_watch.clear();
        self.by_device.clear();
        Gone::Any
    }
}
