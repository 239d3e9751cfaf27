//! The user namespace of a parent that is not in its node's.

use crate::CaptureError;
use mitosis_descriptor::{IdRange, UserNamespace};
use mitosis_sys::procfs;
use mitosis_sys::userns::{self, Place};

/// Refuses where its child could not have one like it: that is made in its node's.
pub(crate) fn refuse(pid: i32) -> Result<(), String> {
    match userns::place(pid).map_err(|e| e.to_string())? {
        Place::Here | Place::Below => Ok(()),
        Place::Deeper => Err("is in a user namespace more than one level below this node's".into()),
        Place::Elsewhere => Err("is in a user namespace that is not below this node's".into()),
    }
}

/// Of a process, or its shadow; `None` in the node's.
pub(crate) fn describe(pid: i32) -> Result<Option<UserNamespace>, CaptureError> {
    let fail = CaptureError::sys("describe", pid);
    if userns::place(pid).map_err(&fail)? == Place::Here {
        return Ok(None);
    }
    let map = |name: &str| procfs::text(pid, name).map(|text| ranges(&text)).map_err(&fail);
    let setgroups = procfs::text(pid, "setgroups").map_err(&fail)?;
    Ok(Some(UserNamespace {
        uids: map("uid_map")?,
        gids: map("gid_map")?,
        setgroups: setgroups.trim() == "allow",
    }))
}

/// `         0     100000      65536`
fn ranges(text: &str) -> Vec<IdRange> {
    let line = |line: &str| {
        let mut numbers = line.split_whitespace().map(str::parse);
        let mut number = || numbers.next()?.ok();
        Some(IdRange { inside: number()?, outside: number()?, count: number()? })
    };
    text.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_read() {
        let text = "         0       1000          1\n         1     100000      65536\n";
        let first = IdRange { inside: 0, outside: 1000, count: 1 };
        let second = IdRange { inside: 1, outside: 100_000, count: 65_536 };
        assert_eq!(ranges(text), [first, second]);
        let all = IdRange { inside: 0, outside: 0, count: u32::MAX };
        assert_eq!(ranges("         0          0 4294967295\n"), [all]);
        assert_eq!(ranges(""), []);
    }
}
