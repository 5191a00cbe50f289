// SPDX-License-Identifier: GPL-2.0
//! What `/proc/self/smaps` says of this process's memory.

use std::fs;
use std::ops::Range;

use crate::failure::{Context, Result};
use crate::pages::Pages;

/// How much of a range is mapped, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mapped {
    /// By pages of any size.
    pub resident: usize,
    /// By PMDs.
    pub huge: usize,
}

/// What is mapped of the VMAs that begin in a range.
pub fn mapped(pages: Pages) -> Result<Mapped> {
    let text = fs::read_to_string("/proc/self/smaps").context("smaps")?;
    Ok(parse(&text, pages.addr..pages.addr + pages.bytes()))
}

fn parse(text: &str, range: Range<usize>) -> Mapped {
    let mut found = Mapped::default();
    let mut is_within = false;
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some(name), Some(value)) = (words.next(), words.next()) else { continue };
        if let Some((start, _)) = name.split_once('-') {
            let start = usize::from_str_radix(start, 16);
            is_within = start.is_ok_and(|start| range.contains(&start));
        } else if is_within {
            let field = match name {
                "Rss:" => &mut found.resident,
                "AnonHugePages:" => &mut found.huge,
                _ => continue,
            };
            *field += value.parse::<usize>().map_or(0, |kilobytes| kilobytes << 10);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Mapping;
    use crate::pages::PAGE_SIZE;

    #[test]
    fn only_of_the_range() {
        const TEXT: &str = "\
            00200000-00600000 rw-p 00000000 00:00 0 \n\
            Size:               4096 kB\n\
            Rss:                2056 kB\n\
            AnonHugePages:      2048 kB\n\
            VmFlags: rd wr mr mw me ac sd \n\
            00600000-00700000 rw-p 00000000 00:00 0 \n\
            Rss:                   4 kB\n";
        let expected = Mapped { resident: 2056 << 10, huge: 2048 << 10 };
        assert_eq!(parse(TEXT, 0x200000..0x600000), expected);
        assert_eq!(parse(TEXT, 0x600000..0x700000), Mapped { resident: 4096, huge: 0 });
        assert_eq!(parse(TEXT, 0x800000..0x900000), Mapped::default());
    }

    #[test]
    fn of_this_process() {
        let mapping = Mapping::small(8).unwrap();
        mapping.fill(2..5, 1);
        let found = mapped(mapping.all()).unwrap();
        assert_eq!(found, Mapped { resident: 3 * PAGE_SIZE, huge: 0 });
    }
}
