//! The generation number: which fork of its seed a process is.
//!
//! Children of one seed hold the same memory, and so believe that they are the same process. The
//! number tells them apart: 16 hexadecimal digits in a file that every language can read, zero in a
//! process that was never forked here, random in each child. Each guard mounts its own over the
//! file; see `mitosis_stub::abi` for the paths.

use crate::error::NodeError;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};

/// The directory of the file. Passable for all: children are not root.
const DIR: &str = "/run/mitosis";
/// The file, on which guards mount.
const FILE: &str = "/run/mitosis/generation";
/// What it says of a process that was not forked here.
const NONE: &[u8] = b"0000000000000000\n";

/// Makes the file, if it is not there. It stays when the daemon ends: whoever reads it does not
/// care whether a node runs.
pub(crate) fn publish() -> Result<(), NodeError> {
    let failed = |e: std::io::Error| NodeError::control(FILE, e);
    match std::fs::DirBuilder::new().mode(0o711).create(DIR) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => return Err(failed(e)),
        _ => {}
    }
    let mode = std::fs::metadata(DIR).map_err(failed)?.permissions().mode();
    std::fs::set_permissions(DIR, PermissionsExt::from_mode(mode | 0o111)).map_err(failed)?;
    let mut options = std::fs::File::options();
    match options.write(true).create_new(true).mode(0o444).open(FILE) {
        Ok(mut file) => {
            // The umask took the others' right.
            file.set_permissions(PermissionsExt::from_mode(0o444)).map_err(failed)?;
            file.write_all(NONE).map_err(failed)
        }
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(failed(e)),
    }
}
