//! Functions of the program that its children may call before they go on, found by the names under
//! which ELF files export them (elf(5), `DT_GNU_HASH`).
//!
//! The files are the parent's: every offset in them is a claim, and every walk has an end.

use mitosis_descriptor::{Backing, Function, Vma};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// What is looked for, by groups: the rest of a group only where its first is there.
const WANTED: &[&[&str]] = &[
    &["mitosis_after_fork"],
    &["RAND_set_rand_method", "OPENSSL_init_crypto"],
    &[
        "Py_AddPendingCall",
        "PyGILState_Ensure",
        "PyGILState_Release",
        "Py_IsInitialized",
        "PyErr_Print",
        "PyImport_GetModuleDict",
        "PyDict_GetItemString",
        "PyObject_CallMethod",
        "PyObject_SetAttrString",
        "PyObject_GetAttrString",
        "Py_MakePendingCalls",
        "PyObject_HasAttrString",
        "PyObject_IsTrue",
    ],
    &[
        "_ZN2v87Isolate10GetCurrentEv",
        "_ZN2v811HandleScopeC1EPNS_7IsolateE",
        "_ZN2v811HandleScopeD1Ev",
        "_ZN2v87Isolate17GetCurrentContextEv",
        "_ZN2v86String11NewFromUtf8EPNS_7IsolateEPKcNS_13NewStringTypeEi",
        "_ZN2v86Script7CompileENS_5LocalINS_7ContextEEENS1_INS_6StringEEEPNS_12ScriptOriginE",
        "_ZN2v86Script3RunENS_5LocalINS_7ContextEEE",
        "_ZNK2v85Value12BooleanValueEPNS_7IsolateE",
    ],
];
/// As many as a descriptor takes.
const FUNCTIONS_MAX: usize = 64;
const PROT_EXEC: u8 = 4;

/// Finds them in the files that `vmas` map executable. Of `known`, those are kept that lie in code
/// which no file stands behind here: a child has code of its parent's files as plain memory.
pub(crate) fn find(vmas: &[Vma], files: &[Option<File>], known: &[Function]) -> Vec<Function> {
    let mut found: Vec<Function> = Vec::new();
    let mut seen: Vec<u32> = Vec::new();
    for vma in vmas.iter().filter(|vma| vma.prot & PROT_EXEC != 0) {
        let Backing::File { file, offset } = vma.backing else { continue };
        let Some(Some(opened)) = files.get(file as usize) else { continue };
        if seen.contains(&file) {
            continue;
        }
        seen.push(file);
        // Not an ELF file, or an odd one: then there is nothing to find.
        let _ = look(opened, vma.start, offset, &mut found);
    }
    let in_memory = |function: &&Function| {
        let at = function.address;
        let code = vmas.iter().find(|vma| vma.start <= at && at < vma.end);
        code.is_some_and(|vma| vma.prot & PROT_EXEC != 0 && vma.backing == Backing::Anonymous)
    };
    found.extend(known.iter().filter(in_memory).cloned());
    found.truncate(FUNCTIONS_MAX);
    found
}

/// Looks in one file, of which `offset` is mapped at `start`.
fn look(file: &File, start: u64, offset: u64, out: &mut Vec<Function>) -> Option<()> {
    let elf = Elf::open(file)?;
    let (_, _, address) = *elf.loads.iter().find(|load| load.0 & !4095 == offset)?;
    let bias = start.wrapping_sub(address & !4095);
    for group in WANTED {
        for (n, name) in group.iter().enumerate() {
            match elf.symbol(name) {
                Some(value) => out
                    .push(Function { name: (*name).to_owned(), address: bias.wrapping_add(value) }),
                None if n == 0 => break,
                None => {}
            }
        }
    }
    Some(())
}

struct Elf<'a> {
    file: &'a File,
    /// Offset, bytes and address of each loaded segment.
    loads: Vec<(u64, u64, u64)>,
    symbols: u64,
    strings: u64,
    hash: u64,
    /// Buckets, first hashed symbol, words of the filter, its shift.
    header: [u32; 4],
}

const HEADERS_MAX: u64 = 64;
const DYNAMIC_MAX: u64 = 256;
/// Symbols of one bucket; a few in a proper table.
const CHAIN_MAX: u64 = 4096;

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

fn half(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

impl<'a> Elf<'a> {
    fn open(file: &'a File) -> Option<Elf<'a>> {
        // The headers of every linker lie in the first page.
        let mut page = [0u8; 4096];
        let got = file.read_at(&mut page, 0).ok()?;
        let page = page.get(..got)?;
        if page.get(..6)? != b"\x7fELF\x02\x01" {
            return None;
        }
        let (table, count) = (word(page, 32)?, u64::from(half(page, 56)? & 0xffff));
        let mut elf =
            Elf { file, loads: Vec::new(), symbols: 0, strings: 0, hash: 0, header: [0; 4] };
        let mut dynamic = (0, 0);
        for n in 0..count.min(HEADERS_MAX) {
            let at = usize::try_from(table.checked_add(n * 56)?).ok()?;
            if at >= page.len() {
                return None;
            }
            let (kind, offset, address) =
                (half(page, at)?, word(page, at + 8)?, word(page, at + 16)?);
            match kind {
                1 => elf.loads.push((offset, word(page, at + 32)?, address)),
                2 => dynamic = (offset, word(page, at + 32)?),
                _ => {}
            }
        }
        for n in 0..(dynamic.1 / 16).min(DYNAMIC_MAX) {
            let entry = elf.read::<16>(dynamic.0.checked_add(n * 16)?)?;
            let value = word(&entry, 8)?;
            match word(&entry, 0)? {
                0 => break,
                5 => elf.strings = value,
                6 => elf.symbols = value,
                0x6fff_fef5 => elf.hash = value,
                _ => {}
            }
        }
        if elf.hash == 0 || elf.symbols == 0 || elf.strings == 0 {
            return None;
        }
        let header = elf.at::<16>(elf.hash)?;
        for (n, field) in elf.header.iter_mut().enumerate() {
            *field = half(&header, 4 * n)?;
        }
        (elf.header[0] != 0 && elf.header[2].is_power_of_two()).then_some(elf)
    }

    fn read<const N: usize>(&self, offset: u64) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        self.file.read_exact_at(&mut bytes, offset).ok()?;
        Some(bytes)
    }

    /// Bytes at an address of the image.
    fn at<const N: usize>(&self, address: u64) -> Option<[u8; N]> {
        let holds = |load: &&(u64, u64, u64)| address >= load.2 && address - load.2 < load.1;
        let (offset, _, start) = self.loads.iter().find(holds)?;
        self.read(offset.checked_add(address - start)?)
    }

    /// Value of a function that is defined here.
    fn symbol(&self, name: &str) -> Option<u64> {
        let hash = name
            .bytes()
            .fold(5381u32, |hash, byte| hash.wrapping_mul(33).wrapping_add(u32::from(byte)));
        let [buckets, first, filter, shift] = self.header;
        let slot = u64::from((hash / 64) & (filter - 1));
        let table = self.hash.checked_add(16)?;
        let filtered = word(&self.at::<8>(table.checked_add(slot * 8)?)?, 0)?;
        let bits = 1u64 << (hash % 64) | 1u64 << (hash.checked_shr(shift)? % 64);
        if filtered & bits != bits {
            return None;
        }
        let table = table.checked_add(u64::from(filter) * 8)?;
        let bucket = table.checked_add(u64::from(hash % buckets) * 4)?;
        let bucket = half(&self.at::<4>(bucket)?, 0)?;
        let chains = table.checked_add(u64::from(buckets) * 4)?;
        for index in u64::from(bucket)..u64::from(bucket) + CHAIN_MAX {
            let chained = chains.checked_add(index.checked_sub(first.into())? * 4)?;
            let chained = half(&self.at::<4>(chained)?, 0)?;
            if chained | 1 == hash | 1 {
                if let Some(value) = self.defined(index, name) {
                    return Some(value);
                }
            }
            if chained & 1 != 0 {
                return None;
            }
        }
        None
    }

    /// Value of symbol `index`, if it has that name and is a function of this file.
    fn defined(&self, index: u64, name: &str) -> Option<u64> {
        const STT_FUNC: u8 = 2;
        let symbol = self.at::<24>(self.symbols.checked_add(index * 24)?)?;
        let text = self.strings.checked_add(u64::from(half(&symbol, 0)?))?;
        let defined = half(&symbol, 4)? >> 16 != 0 && symbol[4] & 15 == STT_FUNC;
        (defined && self.is_text(text, name)?).then_some(word(&symbol, 8)?)
    }

    fn is_text(&self, address: u64, name: &str) -> Option<bool> {
        let holds = |load: &&(u64, u64, u64)| address >= load.2 && address - load.2 < load.1;
        let (offset, _, start) = self.loads.iter().find(holds)?;
        let mut bytes = vec![0; name.len() + 1];
        self.file.read_exact_at(&mut bytes, offset.checked_add(address - start)?).ok()?;
        Some(bytes.strip_suffix(&[0]) == Some(name.as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The C library of this very process.
    fn libc() -> (File, Vec<(u64, u64)>) {
        let maps = std::fs::read_to_string("/proc/self/maps").expect("maps");
        let lines = maps.lines().filter(|line| line.contains("libc.so") || line.contains("libc-"));
        let ranges: Vec<(u64, u64, String)> = lines
            .filter(|line| line.contains(" r-xp "))
            .map(|line| {
                let words: Vec<&str> = line.split_whitespace().collect();
                let hex = |text: &str| u64::from_str_radix(text, 16).expect("hex");
                (hex(words[0].split('-').next().expect("range")), hex(words[2]), words[5].into())
            })
            .collect();
        let file = File::open(&ranges[0].2).expect("libc");
        (file, ranges.iter().map(|r| (r.0, r.1)).collect())
    }

    #[test]
    fn a_function_is_found_where_it_is() {
        let (file, code) = libc();
        let elf = Elf::open(&file).expect("an ELF file");
        assert!(elf.symbol("getpid").is_some() && elf.symbol("qsort").is_some());
        assert_eq!(elf.symbol("mitosis_after_fork"), None);
        // `environ` is no function, and `getpid` is found at an address within the code.
        assert_eq!(elf.symbol("environ"), None);
        let (start, offset) = code[0];
        let load = elf.loads.iter().find(|load| load.0 & !4095 == offset).expect("its segment");
        let value = elf.symbol("getpid").expect("getpid");
        assert!(value >= load.2 && value < load.2 + load.1 && start != 0);
    }

    /// No offset in the file is believed.
    #[test]
    fn a_mutated_file_makes_no_panic() {
        let (mut libc, code) = libc();
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut libc, &mut bytes).expect("all of it");
        let path = std::env::temp_dir().join(format!("mitosis-mutated-{}", std::process::id()));
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path);
        let file = file.expect("open");
        std::fs::remove_file(&path).expect("remove");
        file.write_all_at(&bytes, 0).expect("write");
        let mut state = 1u32;
        for _ in 0..5000 {
            let mut mutated = bytes[..2048].to_vec();
            for _ in 0..8 {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let at = (state >> 8) as usize % mutated.len();
                mutated[at] = (state >> 24) as u8;
            }
            file.write_all_at(&mutated, 0).expect("write");
            let mut out = Vec::new();
            let _ = look(&file, 0x7f00_0000_0000, code[0].1, &mut out);
        }
    }

    #[test]
    fn nonsense_is_no_elf_file() {
        let mut bytes = vec![0xff; 5000];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        let path = std::env::temp_dir().join(format!("mitosis-nonsense-{}", std::process::id()));
        std::fs::write(&path, &bytes).expect("write");
        let file = File::open(&path).expect("open");
        std::fs::remove_file(&path).expect("remove");
        let mut out = Vec::new();
        assert!(look(&file, 0x1000, 0, &mut out).is_none() && out.is_empty());
    }
}
