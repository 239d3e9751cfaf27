//! What the demonstration found, for people and for programs.

use crate::error::BenchError;
use crate::report::{Samples, short};
use mitosis_lab::Memory;
use serde_json::json;

/// All of it.
pub struct Findings {
    /// Children on each of the other nodes.
    pub per_node: Vec<usize>,
    /// Microseconds that `prepare` took, and of them those in which the parent stood still.
    pub prepare_us: u64,
    /// The latter.
    pub freeze_us: u64,
    /// Bytes that a node needs to start a child.
    pub descriptor_bytes: u64,
    /// First response of the first child of each node.
    pub first_ms: Samples,
    /// First response of every other child.
    pub next_ms: Samples,
    /// First response of a new interpreter.
    pub python_ms: Samples,
    /// First response of a new container.
    pub runc_ms: Samples,
    /// Mean over all children.
    pub child_memory: Memory,
    /// The function in a new process.
    pub fresh_memory: Memory,
    /// Pages that went to all children together.
    pub pages_moved: u64,
    /// Pages that all children together would have had to copy.
    pub pages_owned: u64,
    /// Bytes that came over the links of the children's nodes.
    pub link_bytes: u64,
    /// Seconds in all.
    pub wall_s: f64,
}

impl Findings {
    /// Prints to standard output.
    pub fn print(&self, as_json: bool) -> Result<(), BenchError> {
        if as_json {
            let text = serde_json::to_string_pretty(&self.json());
            println!("{}", text.map_err(|error| BenchError::wrong("print", error))?);
        } else {
            print!("{}", self.text());
        }
        Ok(())
    }

    fn json(&self) -> serde_json::Value {
        let spread = |samples: &Samples| {
            json!({ "min": finite(samples.min()), "median": finite(samples.median()),
                    "max": finite(samples.max()), "samples": samples.values })
        };
        json!({
            "children": self.per_node.iter().sum::<usize>(),
            "children_per_node": self.per_node,
            "prepare_us": self.prepare_us,
            "freeze_us": self.freeze_us,
            "descriptor_bytes": self.descriptor_bytes,
            "first_response_ms": {
                "fork_first_on_node": spread(&self.first_ms),
                "fork_next_on_node": spread(&self.next_ms),
                "python3_anew": spread(&self.python_ms),
                "runc_run": spread(&self.runc_ms),
            },
            "memory_bytes": { "child_mean": self.child_memory, "fresh_process": self.fresh_memory },
            "pages": { "moved": self.pages_moved, "owned": self.pages_owned },
            "link_bytes": self.link_bytes,
            "wall_s": self.wall_s,
        })
    }

    fn text(&self) -> String {
        let total: usize = self.per_node.iter().sum();
        let runc = self.runc_ms.median();
        let line = |name: &str, samples: &Samples| {
            let (median, max) = (samples.median(), samples.max());
            match samples.values.len() {
                0 => format!("  {name:<34} {:>9}\n", "none"),
                count => format!(
                    "  {name:<34} {:>9} ms  (max {:>8}, n {count:>3})  {:>6} x runc run\n",
                    short(median),
                    short(max),
                    short(median / runc)
                ),
            }
        };
        let memory = |name: &str, memory: &Memory| {
            let mib = |bytes: u64| short(bytes as f64 / f64::from(1 << 20));
            let (pss, private) = (mib(memory.pss), mib(memory.private));
            format!("  {name:<34} {pss:>9} MiB PSS, {private} MiB private\n")
        };
        let share = 100.0 * self.pages_moved as f64 / self.pages_owned.max(1) as f64;
        [
            format!("\n{total} children on {} nodes, from one parent\n\n", self.per_node.len()),
            "time to first response\n".to_owned(),
            line("remote fork, first on a node", &self.first_ms),
            line("remote fork, next on that node", &self.next_ms),
            line("cold start, python3 anew", &self.python_ms),
            line("cold start, runc run", &self.runc_ms),
            "\nmemory for each\n".to_owned(),
            memory("child, after its answer", &self.child_memory),
            memory("new process, after its answer", &self.fresh_memory),
            "\npages\n".to_owned(),
            format!("  moved {} of {} owned: {share:.1} %", self.pages_moved, self.pages_owned),
            format!("; {:.1} MiB on the links\n", self.link_bytes as f64 / f64::from(1 << 20)),
            "\nthe parent\n".to_owned(),
            format!("  prepared in {} us, of which it stood ", self.prepare_us),
            format!("still {} us; descriptor {} bytes; ", self.freeze_us, self.descriptor_bytes),
            format!("it still answers\n\nall in {:.1} s\n", self.wall_s),
        ]
        .concat()
    }
}

/// JSON knows no NaN: a median of nothing is null.
fn finite(value: f64) -> Option<f64> {
    value.is_finite().then_some(value)
}
