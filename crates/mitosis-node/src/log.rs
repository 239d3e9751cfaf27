//! Lines on standard error.

use std::fmt::{Arguments, Display};
use std::io::Write;
use std::str::FromStr;

/// How much a line matters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Level {
    /// Something was lost.
    Error,
    /// Something may go wrong, or did and was handled.
    Warn,
    /// What the node did.
    Info,
    /// Everything.
    Debug,
}

impl FromStr for Level {
    type Err = String;
    fn from_str(text: &str) -> Result<Level, String> {
        match text {
            "error" => Ok(Level::Error),
            "warn" => Ok(Level::Warn),
            "info" => Ok(Level::Info),
            "debug" => Ok(Level::Debug),
            _ => Err(format!("log level {text:?}: want error, warn, info or debug")),
        }
    }
}

/// Writes lines up to a level.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Log(pub Level);

impl Log {
    fn line(self, level: Level, what: Arguments<'_>) {
        if level > self.0 {
            return;
        }
        let name = match level {
            Level::Error => "error",
            Level::Warn => "warn",
            Level::Info => "info",
            Level::Debug => "debug",
        };
        // A daemon outlives the reader of its log: a failed write loses the line, nothing else.
        let _ = std::io::stderr().write_all(format!("mitosis: {name}: {what}\n").as_bytes());
    }
    /// Something was lost.
    pub fn error(self, what: impl Display) {
        self.line(Level::Error, format_args!("{what}"));
    }
    /// Something may go wrong.
    pub fn warn(self, what: impl Display) {
        self.line(Level::Warn, format_args!("{what}"));
    }
    /// What the node did.
    pub fn info(self, what: impl Display) {
        self.line(Level::Info, format_args!("{what}"));
    }
    /// Everything.
    pub fn debug(self, what: impl Display) {
        self.line(Level::Debug, format_args!("{what}"));
    }
}
