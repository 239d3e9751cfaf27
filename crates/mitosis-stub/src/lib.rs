//! The code that runs inside processes which have nothing else: the guard of a child's pid
//! namespace, the interpreter that builds a child from inside, and the blob that makes a running
//! parent fork its shadow.
//!
//! Building a child from outside costs a context switch for every operation; from inside it costs
//! a system call. So the node computes a table of operations ([`abi::Plan`]) and this code performs
//! it. The code itself is a freestanding program (`src/guest`), compiled by `build.rs` to one
//! position-independent image and carried in [`ELF`].

pub mod abi;

/// The guest as an ELF executable (run as a guard).
pub static ELF: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/guest.elf"));

/// The guest's text: can be copied to any address; see `abi::ENTRY_*`.
pub fn text() -> &'static [u8] {
    &ELF[abi::TEXT_OFFSET..text_end()]
}

/// End of the only loadable segment in the file: program header 0 follows the 64-byte ELF header.
fn text_end() -> usize {
    let field = |offset: usize| {
        let mut word = [0u8; 8];
        word.copy_from_slice(&ELF[offset..offset + 8]);
        u64::from_le_bytes(word) as usize
    };
    field(64 + 8) + field(64 + 32)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_image_is_small_and_has_its_entries() {
        let text = super::text();
        assert!(text.len() < 16 << 10, "{} bytes", text.len());
        for entry in 0..4 {
            assert_eq!(text[entry * 16], 0xe9, "entry {entry} is a jump");
        }
    }
}
