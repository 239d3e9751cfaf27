//! A memory cgroup for the lab: what is charged to it is the children's, whatever others do on this
//! machine meanwhile.

use std::fs;
use std::path::{Path, PathBuf};

/// The cgroup that this process is in while it lives, and with it all that it starts.
#[derive(Debug)]
pub struct Group {
    dir: PathBuf,
    before: PathBuf,
    usage: &'static str,
}

impl Group {
    /// Makes one and enters it; `None` where that cannot be.
    pub fn enter() -> Option<Group> {
        let text = fs::read_to_string("/proc/self/cgroup").ok()?;
        let path = |wanted: fn(&str) -> bool| {
            text.lines().find_map(|line| {
                let mut fields = line.splitn(3, ':').skip(1);
                let controllers = fields.next()?;
                wanted(controllers).then(|| fields.next()?.strip_prefix('/'))?
            })
        };
        let name = format!("mitosis-scale-{}", std::process::id());
        let memory = |list: &str| list.split(',').any(|one| one == "memory");
        let (root, before, usage) = match path(memory) {
            Some(own) => ("/sys/fs/cgroup/memory", own, "memory.usage_in_bytes"),
            // Beside its own: one with processes in it has no children with controllers.
            None => ("/sys/fs/cgroup", path(str::is_empty)?, "memory.current"),
        };
        let dir = Path::new(root).join(name);
        let before = Path::new(root).join(before);
        fs::create_dir(&dir).ok()?;
        let group = Group { dir, before, usage };
        group.kib()?;
        fs::write(group.dir.join("cgroup.procs"), std::process::id().to_string()).ok()?;
        Some(group)
    }

    /// KiB that are charged to it.
    pub fn kib(&self) -> Option<u64> {
        let text = fs::read_to_string(self.dir.join(self.usage)).ok()?;
        text.trim().parse::<u64>().ok().map(|bytes| bytes / 1024)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // What has just ended may be in it for a moment; an empty one that stays costs nothing.
        let _ = fs::write(self.before.join("cgroup.procs"), std::process::id().to_string());
        for _ in 0..50 {
            if fs::remove_dir(&self.dir).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}
