//! How far the demonstration is, on standard error.

use std::io::{IsTerminal, Write};

const WIDTH: usize = 40;

/// A bar on a terminal, lines elsewhere.
pub struct Progress {
    total: usize,
    done: usize,
    bar: bool,
}

impl Progress {
    /// Of `total` steps none is done yet.
    pub fn new(total: usize) -> Self {
        Progress { total, done: 0, bar: std::io::stderr().is_terminal() }
    }

    /// What begins now.
    pub fn say(&mut self, what: &str) {
        self.clear();
        eprintln!("{what}");
        self.draw();
    }

    /// One more step is done.
    pub fn step(&mut self) {
        self.done += 1;
        let tenth = (self.total / 10).max(1);
        if self.bar {
            self.draw();
        } else if self.done % tenth == 0 {
            eprintln!("{} of {}", self.done, self.total);
        }
    }

    /// Takes the bar away.
    pub fn end(&mut self) {
        self.clear();
        self.bar = false;
    }

    fn clear(&self) {
        if self.bar {
            eprint!("\r\x1b[K");
        }
    }

    fn draw(&self) {
        if !self.bar {
            return;
        }
        let full = WIDTH * self.done.min(self.total) / self.total.max(1);
        eprint!("\r[{:WIDTH$}] {}/{}", "#".repeat(full), self.done, self.total);
        // A bar that cannot be drawn is no reason to stop.
        let _ = std::io::stderr().flush();
    }
}
