//! REF arguments. argv is public, so `-` reads the reference from standard input and `@FILE` from
//! a file.

use crate::error::CliError;
use mitosis_descriptor::{Reference, SeedId};
use std::io::Read;

/// A reference is about 120 bytes; nothing longer than this is read.
const BYTES_MAX: u64 = 4096;

fn bounded(from: impl Read, name: &str) -> Result<String, CliError> {
    let mut text = String::new();
    from.take(BYTES_MAX)
        .read_to_string(&mut text)
        .map_err(|e| CliError::Failed(format!("cannot read the reference from {name}: {e}")))?;
    Ok(text.trim().to_owned())
}

/// The text that an argument stands for.
pub fn text(argument: &str) -> Result<String, CliError> {
    match argument.strip_prefix('@') {
        Some(path) => {
            let file = std::fs::File::open(path).map_err(|e| {
                CliError::Failed(format!("cannot read the reference from {path}: {e}"))
            })?;
            bounded(file, path)
        }
        None if argument == "-" => bounded(std::io::stdin().lock(), "standard input"),
        None => Ok(argument.to_owned()),
    }
}

/// The reference that an argument stands for.
pub fn parse(argument: &str) -> Result<Reference, CliError> {
    text(argument)?.parse().map_err(|e| CliError::Usage(format!("{e}")))
}

/// A reference or the public id of a seed of this node, as text.
pub fn seed(argument: &str) -> Result<String, CliError> {
    let text = text(argument)?;
    if text.parse::<SeedId>().is_ok() || text.parse::<Reference>().is_ok() {
        return Ok(text);
    }
    // Not the text itself: it may be a reference with a typing mistake, secret and all.
    Err(CliError::Usage("neither a reference nor the 16 digits of a seed".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const REF: &str = "mitosis://10.0.0.1:7000/0123456789abcdef\
        #000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

    #[test]
    fn as_it_stands() {
        let reference = parse(REF).unwrap();
        assert_eq!(reference.address, "10.0.0.1:7000");
        assert_eq!(reference.reveal(), REF);
    }

    #[test]
    fn from_a_file() {
        let path = std::env::temp_dir().join(format!("mitosis-ref-{}", std::process::id()));
        std::fs::write(&path, format!("{REF}\n")).unwrap();
        let reference = parse(&format!("@{}", path.display()));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(reference.unwrap().reveal(), REF);
    }

    #[test]
    fn a_missing_file_is_not_a_usage_error() {
        assert_eq!(parse("@/nonexistent/ref").unwrap_err().status(), 1);
    }

    #[test]
    fn a_bad_reference_is_a_usage_error_and_is_not_repeated() {
        let bad = REF.replace("0001", "00zz");
        let error = parse(&bad).unwrap_err();
        assert_eq!(error.status(), 2);
        assert!(!error.to_string().contains("0405060708"));
        assert_eq!(seed("nonsense").unwrap_err().status(), 2);
        assert!(seed("0123456789abcdef").is_ok());
    }
}
