// SPDX-License-Identifier: GPL-2.0
//! The system's physical memory, and whose it is: `/proc/iomem`.

use std::fs;
use std::ops::Range;

use crate::failure::{Context, Result};

const IOMEM: &str = "/proc/iomem";
const DEVICE: &str = "hmm_dmirror";
const SPM: &str = "Soft Reserved";

/// A region of physical memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// Addresses, in bytes.
    pub range: Range<u64>,
    /// Whether it is part of special-purpose memory.
    pub is_spm: bool,
}

/// The regions that a driver of the devices has claimed.
pub fn device_regions() -> Result<Vec<Region>> {
    Ok(parse(&fs::read_to_string(IOMEM).context(IOMEM)?))
}

fn parse(iomem: &str) -> Vec<Region> {
    let mut regions = Vec::new();
    let mut is_spm = false;
    for line in iomem.lines() {
        let Some((range, name)) = line.split_once(" : ") else { continue };
        if !line.starts_with(' ') {
            is_spm = name == SPM;
        }
        if let Some(range) = parse_range(range.trim()).filter(|_| name.starts_with(DEVICE)) {
            regions.push(Region { range, is_spm });
        }
    }
    regions
}

fn parse_range(text: &str) -> Option<Range<u64>> {
    let (start, last) = text.split_once('-')?;
    let address = |text| u64::from_str_radix(text, 16).ok();
    Some(address(start)?..address(last)? + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_of_devices() {
        let iomem = "\
00001000-0009fbff : System RAM
100000000-13fffffff : Soft Reserved
  100000000-10fffffff : hmm_dmirror4
  110000000-11fffffff : dax0.0
fd00000000-fd0fffffff : hmm_dmirror
";
        let (spm, private) = (0x1_0000_0000..0x1_1000_0000, 0xfd_0000_0000..0xfd_1000_0000);
        let expected =
            [Region { range: spm, is_spm: true }, Region { range: private, is_spm: false }];
        assert_eq!(parse(iomem), expected);
        assert_eq!(parse(""), []);
    }
}
