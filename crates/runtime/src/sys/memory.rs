//! What a process keeps of the machine's memory.

use std::thread::available_parallelism;

use libc::{c_int, c_void};

/// Has the threads of this process share as many heaps as can be used at once. The C library would give
/// nearly every thread one of its own, in which what it has freed stays.
///
/// To be called before there are threads: a heap that exists is kept.
pub fn share_heaps() {
    let heaps = available_parallelism().map_or(1, usize::from);
    let heaps = c_int::try_from(heaps).unwrap_or(c_int::MAX);
    // SAFETY: sets a number; glibc takes its own lock around it.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, heaps) };
}

/// Gives back what is not in use at the moment: free pages of the heaps, and the pages of the program
/// itself, which are read again from the page cache when they are next needed. Takes about a millisecond
/// in a process of 50 MB, and for that long others wait for the heaps.
pub fn give_back() {
    // SAFETY: takes the heaps' locks, and touches free memory only.
    unsafe { libc::malloc_trim(0) };
    for (start, length) in program_pages() {
        // SAFETY: the range is whole pages of a private mapping of the executable that nothing may write
        // to, so that its content is the file's, now and when it is read again.
        unsafe { libc::madvise(start, length, libc::MADV_DONTNEED) };
    }
}

/// The parts of this program that are mapped from its file and never written, not even by the dynamic
/// loader (elf(5)), as whole pages.
fn program_pages() -> Vec<(*mut c_void, usize)> {
    // SAFETY: reads what the kernel told the process at its start (getauxval(3)).
    let told = |what| unsafe { libc::getauxval(what) };
    let (table, count) = (told(libc::AT_PHDR), told(libc::AT_PHNUM));
    let (Ok(table_at), Ok(count)) = (usize::try_from(table), usize::try_from(count)) else {
        return Vec::new();
    };
    if table_at == 0 {
        return Vec::new();
    }
    // SAFETY: the kernel's values are address and length of the program's own table of headers, which
    // stays mapped, and is not written, for as long as the process lives.
    let headers = unsafe { std::slice::from_raw_parts(table_at as *const libc::Elf64_Phdr, count) };
    let own = headers.iter().find(|header| header.p_type == libc::PT_PHDR);
    let page = told(libc::AT_PAGESZ).max(4096);
    let Some(base) = own.and_then(|own| table.checked_sub(own.p_vaddr)) else {
        return Vec::new();
    };
    let read_only = headers
        .iter()
        .filter(|header| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0);
    read_only
        .map(|header| {
            let start = (base + header.p_vaddr).next_multiple_of(page);
            let end = (base + header.p_vaddr + header.p_memsz) / page * page;
            (start as *mut c_void, end.saturating_sub(start) as usize)
        })
        .filter(|(_, length)| *length > 0)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_there_after_it_was_given_back() {
        share_heaps();
        let text = std::hint::black_box("still here").to_owned();
        let code = program_pages();
        let here = the_program_is_there_after_it_was_given_back as fn() as usize;
        let holds = |(start, length): &(*mut c_void, usize)| {
            (*start as usize..*start as usize + length).contains(&here)
        };
        assert!(code.iter().any(holds), "{here:x} is in none of {code:?}");
        let mapped = std::fs::read_to_string("/proc/self/maps").unwrap();
        for (start, length) in code {
            let within = |line: &str| {
                let (range, rest) = line.split_once(' ')?;
                let (from, to) = range.split_once('-')?;
                let from = usize::from_str_radix(from, 16).ok()?;
                let to = usize::from_str_radix(to, 16).ok()?;
                let holds = from <= start as usize && start as usize + length <= to;
                holds.then(|| rest.to_owned())
            };
            let line = mapped.lines().find_map(within).expect("one mapping");
            assert!(!line[..4].contains('w'), "{line}");
        }
        give_back();
        assert_eq!(text, "still here");
    }
}
